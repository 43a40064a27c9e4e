"""All text of a report that is not data: (Chinese, English). A page opens in Chinese."""

from __future__ import annotations

from sft.tasks.metrics import METRIC_NAMES

_SCORES = {  # with a capital letter, as headings
    name: (chinese, english[0].upper() + english[1:])
    for name, (chinese, english) in METRIC_NAMES.items()
    if name != "loss"  # here it is the training loss
}

STRINGS: dict[str, tuple[str, str]] = {
    # page
    "language": ("English", "中文"),
    "skip": ("跳到正文", "Skip to content"),
    "sections": ("目录", "Contents"),
    "report_run": ("微调报告", "Fine-tuning report"),
    "report_prediction": ("预测报告", "Prediction report"),
    # Titles of tasks; the title of another task is shown as it is.
    "文本分类": ("文本分类", "Text classification"),
    "命名实体识别": ("命名实体识别", "Named entity recognition"),
    "written": ("写于 {time}", "Written {time}"),
    "no_predictions": (
        "没有成绩：既没有测试集也没有验证集。",
        "No scores: there was neither a test nor a validation set.",
    ),
    "no_script": (
        "浏览器没有运行脚本：逐条浏览、筛选和切换语言用不了，其余都在。",
        "Scripts are off: browsing rows, filters and the language switch do not work; all else is here.",
    ),
    # summary
    "summary": ("概览", "Summary"),
    "base": ("底座模型", "Base model"),
    "adapter": ("适配器", "Adapter"),
    "no_adapter": ("不加载（微调之前的模型）", "None (the model before fine-tuning)"),
    "data": ("数据", "Data"),
    "rows_train": ("训练 {rows} 条", "{rows} training rows"),
    "rows_validation": ("验证 {rows} 条", "{rows} validation rows"),
    "rows_test": ("测试 {rows} 条", "{rows} test rows"),
    "rows_predicted": ("{rows} 条", "{rows} rows"),
    "rows_failed": ("{rows} 条，其中 {failed} 条无法预测", "{rows} rows, {failed} of which could not be predicted"),
    "names_left_out": ("没有采用的名字", "Names left out"),
    "left_out_names": ("{invented} 个文中没有，{repeated} 个重复", "{invented} not in the text, {repeated} repeated"),
    "training_time": ("训练用时", "Training time"),
    "steps": ("步数", "Steps"),
    "steps_epochs": ("{steps} 步，{epochs} 轮", "{steps} steps, {epochs} epochs"),
    "tokens": ("token：实际计算 / 名义", "Tokens: executed / logical"),
    "tokens_share": ("{executed} / {logical}（{share}%）", "{executed} / {logical} ({share}%)"),
    "peak_memory": ("内存峰值", "Peak memory"),
    "peak_memory_cuda": ("显存峰值", "Peak GPU memory"),
    "numbers": ("数值类型", "Number format"),
    "metric": ("指标", "Score"),
    "before": ("验证集，微调前", "Validation, before"),
    "after": ("验证集，微调后", "Validation, after"),
    "test": ("测试集，微调后", "Test, after"),
    "predicted": ("预测", "Predictions"),
    "interval_bootstrap": (
        "方括号里是 95% 区间：自助法，对行有放回重抽 {resamples} 次，种子固定。",
        "In brackets: 95% bootstrap intervals, {resamples} resamples of rows with a fixed seed.",
    ),
    "interval_wilson": (
        "行全对、全错或只有一种时，重抽没有差别，带 * 的改用 Wilson 区间（F1 取精确率和召回率两端的调和平均）。",
        "Where all rows are right, all wrong, or alike, resampling changes nothing: * marks Wilson intervals (for F1, "
        "harmonic means of the ends for precision and recall).",
    ),
    "before_missing": (
        "没有微调前的成绩：没有验证集，或用了 --eval_on_start false。",
        "Scores before fine-tuning: not available (no validation set, or --eval_on_start false).",
    ),
    "gold_problems": (
        "有 {rows} 行的标准答案用不上，整行不计入成绩：{reasons}",
        "The gold of {rows} rows cannot be used, so these rows are not in the scores: {reasons}",
    ),
    "no_scores": ("没有标注，无从评分。", "No gold, so there are no scores."),
    **_SCORES,
    "f1_short": ("F1", "F1"),
    # curves
    "curves": ("曲线", "Curves"),
    "chart_loss": ("损失", "Loss"),
    "chart_scores": ("验证集成绩", "Validation scores"),
    "chart_threshold": ("阈值与验证集成绩", "Threshold and validation scores"),
    "chart_learning_rate": ("学习率", "Learning rate"),
    "loss": ("训练损失", "Training loss"),
    "eval_loss": ("验证损失", "Validation loss"),
    **{f"eval_{name}": words for name, words in _SCORES.items()},
    "learning_rate": ("学习率", "Learning rate"),
    "step": ("步", "Step"),
    "threshold": ("阈值", "Threshold"),
    "length_tokens": ("一条的 token 数", "Tokens in a row"),
    "logarithmic": ("对数刻度", "log scale"),
    "kept": ("采用：{at}", "Kept: {at}"),
    "kept_best": (
        "采用的是第 {step} 步的权重（共 {steps} 步）：各次验证中最好的一次（按{metric}），图中竖线处。",
        "The weights kept are those of step {step} of {steps}: the best {metric} of all validations, at the vertical "
        "line.",
    ),
    "kept_last": (
        "采用的是第 {step} 步的权重（共 {steps} 步），也就是最后一步：没有按验证成绩挑选。",
        "The weights kept are those of step {step} of {steps}, the last one: none were chosen by validation.",
    ),
    "kept_all": (
        "阈值是 0，实体全给：去掉概率低的，验证集的成绩（{metric}）不会更高；predict.py 默认也全给。",
        "The threshold is 0, all entities are given: leaving out unlikely ones raises no {metric} on the validation "
        "rows. predict.py gives them all, too, unless told otherwise.",
    ),
    "kept_threshold": (
        "概率低于 {threshold} 的实体不给：这个阈值让验证集的成绩（{metric}）最高，predict.py 默认用它。",
        "Entities with a probability below {threshold} are left out: this threshold gives the best {metric} on the "
        "validation rows, and predict.py uses it unless told otherwise.",
    ),
    "kept_temperature": (
        "概率按温度 {temperature} 校准过：它在验证集上拟合，使概率更接近答对的比例，predict.py 也用它。",
        "Probabilities are calibrated with temperature {temperature}: it was fitted on the validation rows, brings "
        "probabilities closer to the share of right answers, and predict.py uses it, too.",
    ),
    "kept_temperature_and_bias": (
        "概率按温度 {temperature} 和偏置 {bias} 校准过：它们在验证集上拟合，使概率更接近答对的比例，"
        "predict.py 也用它们。",
        "Probabilities are calibrated with temperature {temperature} and bias {bias}: they were fitted on the "
        "validation rows, bring probabilities closer to the share of right answers, and predict.py uses them, too.",
    ),
    "rates_tried": ("试学习率", "Learning rates tried"),
    "rates_tried_note": (
        "--learning_rate auto 用训练数据的一小份各试几步，比验证损失；取试得最久的几个里最低的（相差不到 5% 取小的），"
        "带 * 的就是。"
        "步数越少，合适的学习率越大，所以试的时候按步数之比的立方根放大。",
        "--learning_rate auto tries each rate for a few steps on a small part of the training rows and compares the "
        "validation loss; of those tried longest it takes the lowest (within 5 % the smaller rate), marked *. Fewer "
        "steps want a larger rate, so a trial's is larger by the cube root of the ratio of steps.",
    ),
    "steps_tried": ("{steps} 步", "{steps} steps"),
    "diverged": ("发散", "diverged"),
    "no_threshold": (
        "没有定阈值：验证集里只有 {entities} 个标注的实体，少于 {least} 个，定出来也是碰巧。",
        "No threshold was chosen: the validation rows have only {entities} gold entities; by fewer than {least} the "
        "choice would be chance.",
    ),
    "curve_hint": (
        "指向曲线看数值；键盘用左右方向键。",
        "Point at a curve to read it; with the keyboard, use ← and →.",
    ),
    # results
    "results": ("结果", "Results"),
    "by_label": ("各标签", "By label"),
    "label": ("标签", "Label"),
    "gold": ("标注", "Gold"),
    "gold_count": ("标注数", "Gold"),
    "predicted_count": ("预测数", "Predicted"),
    "confusion": ("混淆矩阵", "Confusion matrix"),
    "confusion_hint": (
        "行是标注，列是预测，颜色是占该行的比例；按下一格看那些行，方向键在格间移动。",
        "Rows are gold, columns predicted, shading is the share of the row. Press a cell to see its rows; arrow keys "
        "move between cells.",
    ),
    "other_labels": ("其余标签", "Other labels"),
    "no_label": ("无法解析", "Unparsable"),
    "calibration": ("校准", "Calibration"),
    "calibration_note": (
        "期望校准误差（ECE，{bins} 个等宽区间）{error}。点在虚线上方：比自称的更准；下方：过于自信。点越大，行越多。",
        "Expected calibration error (ECE, {bins} bins of equal width) {error}. Marks above the line: more often right "
        "than claimed; below: overconfident. The larger a mark, the more rows.",
    ),
    "calibration_note_spans": (
        "说出的实体的期望校准误差（ECE，{bins} 个等宽区间）{error}；漏掉的实体没有概率，不在其中。"
        "点在虚线上方：比自称的更准；下方：过于自信。点越大，实体越多。",
        "Expected calibration error (ECE, {bins} bins of equal width) of the predicted entities {error}; a missed "
        "entity has no probability and is not in it. Marks above the line: more often right than claimed; below: "
        "overconfident. The larger a mark, the more entities.",
    ),
    "calibration_few": (
        "只有 {count} 个带概率的答案：少于 {few} 个时这个误差偏高，只作参考。",
        "There are only {count} answers with a probability: with fewer than {few} this error comes out too high.",
    ),
    "confidence": ("置信度", "Confidence"),
    "figures": ("数值", "Figures"),
    "range": ("区间", "Range"),
    "rows": ("行数", "Rows"),
    "errors": ("错误种类", "Kinds of error"),
    "kind": ("种类", "Kind"),
    "spans": ("实体数", "Spans"),
    "missed": ("漏掉", "Missed"),
    "invented": ("多出", "Invented"),
    "wrong_label": ("标签错", "Wrong label"),
    "wrong_boundary": ("边界错", "Wrong boundary"),
    "wrong_both": ("边界和标签都错", "Wrong boundary and label"),
    "errors_hint": (
        "两端相同而标签不同的先配对，再是标签相同而有重叠的，再是其他有重叠的；没有配上的就是漏掉或多出。"
        "各列按标注的标签计，多出的按预测的标签计。",
        "Spans with the same ends are paired first, then overlapping ones of the same label, then other overlapping "
        "ones; what is in no pair is missed or invented. Columns go by the gold label, for invented spans by the "
        "predicted one.",
    ),
    # rows
    "row_by_row": ("逐条看", "Row by row"),
    "rows_labels": ("逐条看：最有把握的错误在前", "Row by row: the most confident mistakes first"),
    "rows_spans": ("逐条看", "Row by row"),
    "all_right": ("没有错误：每个实体都对。", "No errors: every entity is right."),
    "shown_judged": (
        "这里列出有错的 {wrong} / {wrong_seen} 条，全对的 {right} / {right_seen} 条。",
        "Listed here: {wrong} of {wrong_seen} rows with errors, {right} of {right_seen} right ones.",
    ),
    "shown_unjudged": (
        "这里列出没有标注的 {shown} / {seen} 条。",
        "Listed here: {shown} of {seen} rows without gold.",
    ),
    "shown_cap_labels": (
        "放不下的是把握较小的错误，和随机略去的其他行。",
        "Left out for size: the less confident mistakes, and other rows at random.",
    ),
    "shown_cap_spans": ("放不下的行随机略去。", "Rows left out for size were chosen at random."),
    "filter": ("筛选", "Filter"),
    "show": ("显示", "Show"),
    "all": ("全部", "All"),
    "wrong": ("有错", "With errors"),
    "right": ("全对", "Right"),
    "any_label": ("任何标签", "Any label"),
    "gold_label": ("标注是", "Gold is"),
    "predicted_label": ("预测是", "Predicted is"),
    "search": ("文中有", "Text contains"),
    "order": ("顺序", "Order"),
    "by_confidence": ("把握大的在前", "Most confident first"),
    "by_unsureness": ("把握小的在前", "Least confident first"),
    "by_row": ("按行号", "By row"),
    "previous": ("上一页", "Previous"),
    "next": ("下一页", "Next"),
    "page_of": ("第 {first}–{last} 条，共 {total} 条", "{first}–{last} of {total}"),
    "none_match": ("没有符合的行。", "No row matches."),
    "row": ("第 {row} 条", "Row {row}"),
    "clipped": ("……（全文 {length} 字）", "… ({length} characters in all)"),
    "gold_line": ("标注", "Gold"),
    "predicted_line": ("预测", "Predicted"),
    "both_line": ("标注与预测相同", "Gold and predicted alike"),
    "gold_is": ("标注", "gold"),
    "predicted_is": ("预测", "predicted"),
    # data
    "lengths": ("训练数据的长度", "Lengths of the training rows"),
    "lengths_note": (
        "一条的 token 数（提示加答案）：中位数 {median}，95% 在 {most} 以内，最长 {longest}；虚线是 "
        "max_length {cut}。",
        "Tokens of a row (prompt and answer): median {median}, 95% within {most}, longest {longest}; the dashed line "
        "is max_length {cut}.",
    ),
    "cut": ("截断", "Cut"),
    "none_cut": ("没有超长的行。", "No row was too long."),
    "rows_cut": (
        "{rows} 条超长，只截正文，共截去 {tokens} 个 token：训练文件第 {lines} 行。",
        "{rows} rows were too long; only their text was cut, by {tokens} tokens in all: lines {lines} of the training "
        "file.",
    ),
    "rows_split": (
        "{rows} 条超长，按句拆成 {pieces} 条：训练文件第 {lines} 行。",
        "{rows} rows were too long and were split at sentence ends into {pieces}: lines {lines} of the training file.",
    ),
    "balance": ("标签分布", "Label balance"),
    "train": ("训练", "Train"),
    "validation": ("验证", "Validation"),
    "test_split": ("测试", "Test"),
    "share": ("占训练", "Share of train"),
    "conversion": ("转换", "Conversion"),
    "read": ("读入", "Read"),
    "converted": ("转换", "Converted"),
    "rejected": ("拒绝", "Rejected"),
    "rejected_fields": ("拒绝，按字段", "Rejected, by field"),
    "rejected_reason": ("拒绝，按原因", "Rejected, by reason"),
    "left_out": ("其他标签，没有要", "Other labels, left out"),
    "dropped_labels": ("去掉的其他标签", "Other labels, dropped"),
    "merged": ("合并的重复行", "Duplicates merged"),
    "leaked": ("与测试集重复而剔除", "Dropped from train for being in test"),
    "repeated": ("测试集里的重复行，保留", "Repeated in test, kept"),
    "composed": ("NFC 规范化改动的行", "Changed by NFC normalisation"),
    "conflicts": ("同一文本标注不同，保留", "Same text with other gold, kept"),
    "texts_on_both_sides": ("两边都有的文本", "Texts on both sides"),
    "whole_row": ("整行", "whole row"),
    # settings
    "settings": ("设置", "Settings"),
}
