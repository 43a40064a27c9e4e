#!/usr/bin/env bash
# 一条命令走完全程：装依赖、转换数据、微调前预测、LoRA 微调、微调后评测；离线、CPU 即可，用仓库自带的小模型和小数据。
# Windows 没有 bash 时，按 readme.md 里的逐条命令做，效果一样。
set -euo pipefail
cd "$(dirname "$0")"
if [ $# -gt 0 ]; then
    echo "quickstart.sh 不收参数（收到 $*）：直接运行 bash quickstart.sh；要自己定参数，见 readme.md 里的逐条命令" >&2
    exit 2
fi
source ./setup.sh
set_up requirements.txt
activate
started=$SECONDS
called_from=$OLDPWD
export SFT_HINTS=no # 下一步由本脚本最后说

data=data/quickstart
output=output/quickstart

# $1 任务  $2 转换脚本  $3 训练脚本  $4 原始训练集  $5 原始测试集  其余：训练参数
run_task() {
    local task=$1 transfer=$2 train=$3 raw_train=$4 raw_test=$5
    shift 5
    if [ -f "$output/$task/all_results.json" ]; then
        echo "== $task：已经训练过，直接看结果（重来请删除 $output/$task）" >&2
        return
    fi
    echo "== $task：转换数据" >&2
    python "$transfer" --input_file "$raw_train" --input_test_file "$raw_test" \
        --output_file "$data/train_$task.jsonl" --test_file "$data/test_$task.jsonl"
    echo "== $task：微调之前" >&2
    mkdir -p "$output"
    python predict.py --base_only --model_name_or_path qwen/demo --dtype float32 --batch_size 64 --overwrite \
        --input_file "$data/test_$task.jsonl" --output_file "$output/$task-before.jsonl" > "$output/$task-before.json"
    echo "== $task：微调" >&2
    python "$train" --model_name_or_path qwen/demo --dtype float32 --swanlab_mode local \
        --train_file "$data/train_$task.jsonl" --output_dir "$output/$task" --overwrite_output_dir "$@" \
        > "$output/$task-results.json"
}

run_task cls transfer_classification_data.py train_qwen2_classification.py \
    data/sample/news_train.jsonl data/sample/news_test.jsonl \
    --learning_rate 3e-3 --lora_r 16 --num_train_epochs 2 --max_length 256
run_task ner transfer_ner_data.py train_qwen2_ner.py \
    data/sample/ner_train.jsonl data/sample/ner_test.jsonl \
    --learning_rate 2e-3 --lora_r 16 --num_train_epochs 1.5

ner_text=和河市总统阿诺夫下周将出访河闽镇。
cls_text=药剂师曾敏梓介绍，早发现、早治疗是战胜疾病的关键。
echo >&2
python predict.py --adapter "$output/ner" --text "$ner_text"

python - "$output" "$((SECONDS - started))" <<'PYTHON'
import json
import sys
from pathlib import Path

output, seconds = Path(sys.argv[1]), sys.argv[2]


def figure(name, metric):
    return json.loads((output / name).read_text(encoding="utf-8"))[metric]


print()
print("留出的测试集              微调前   微调后")
print(f"文本分类 准确率           {figure('cls-before.json', 'accuracy'):.3f}    "
      f"{figure('cls/all_results.json', 'test_accuracy'):.3f}")
print(f"命名实体识别 实体 F1      {figure('ner-before.json', 'f1'):.3f}    "
      f"{figure('ner/all_results.json', 'test_f1'):.3f}")
print(f"用时 {seconds} 秒（不含安装）。错在哪里，用浏览器打开看：")
print(f"{output}/cls/report.html、{output}/ner/report.html")
PYTHON

# 以下每一条都能在新开的终端里原样运行；tests/test_first_minutes.py 就是这样做的。
echo
echo "接着用。每开一个终端先激活环境（Windows 的 cmd 里是 .venv\Scripts\activate）："
[ "$called_from" = "$PWD" ] || echo "    cd $(printf %q "$PWD")"
if [ -f .venv/Scripts/activate ]; then echo "    source .venv/Scripts/activate"; else echo "    source .venv/bin/activate"; fi
cat <<COMMANDS
    python predict.py --adapter $output/ner \\
        --text '$ner_text'
    python predict.py --adapter $output/cls \\
        --text '$cls_text'
（分类是按整篇文章学的，只给一句话常常答错。）
    swanlab watch swanlog
换成真正的模型（下载约 3 GB），数据也可以换成自己的：
    modelscope download --model Qwen/Qwen2.5-1.5B-Instruct \\
        --local_dir qwen/Qwen2.5-1.5B-Instruct
    python train_qwen2_ner.py --train_file $data/train_ner.jsonl \\
        --output_dir output/Qwen2.5-NER
COMMANDS
