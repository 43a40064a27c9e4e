"""Sentence templates of the news sample. Training and test have no template in common.

``{thing}``, ``{act}`` and ``{role}`` are filled with words of the topic; ``{PER}``, ``{GPE}``, ``{LOC}`` and ``{ORG}``
are filled with names.
"""

TRAIN = """\
据{ORG}消息，{GPE}{date}{act}，引起各方关注。
{role}{PER}在接受采访时说，{thing}和{thing2}是今年的重点。
记者在{GPE}看到，{thing}的情况比去年好了许多。
{ORG}的一份报告指出，{thing}在过去{num}年里变化很大。
为了{act}，{GPE}投入了{money}。
{role}们普遍认为，{thing}离不开{thing2}。
{PER}当了{num}年{role}，对{thing}十分熟悉。
有关{thing}的讨论持续了{num}个小时，最后决定{act}。
去年此时，{GPE}也曾{act}，但结果并不理想。
{PER}说：“没有{thing}，就谈不上{thing2}。”
在{LOC}附近，{num}名{role}正在忙着{act}。
从{thing}到{thing2}，每一个环节都不能放松。
{ORG}近年来一直重视{thing}，先后{num}次{act}。
{date}，第一批{thing}运抵{GPE}，{role}{PER}前往查看。
也有{role}提出，{thing}的问题不能只靠一两次努力来解决。
与{GPE1}相比，{GPE2}的{thing}起步较晚，但进步很快。
一位不愿透露姓名的{role}说，{thing2}比{thing}更让人担心。
下一步，{ORG}准备继续{act}，并公布有关{thing}的细节。
统计显示，与{thing}有关的数字上升了{percent}。
{PER1}和{PER2}是多年的朋友，两人都是{role}。
谈起{thing}，{role}{PER}有说不完的话。
不少人专程从{GPE}赶来，只为看一看{thing}。
{thing}、{thing2}、{thing3}，这些词最近常常出现在报纸上。
{ORG}{act}的消息传开以后，{GPE}的{role}们很受鼓舞。
经过{num}天的准备，{ORG}终于{act}。
过去人们很少谈论{thing}，如今{thing}已经十分常见。
这一次，{role}{PER}没有{act}，而是把目光放在{thing}上。
""".splitlines()

TEST = """\
{date}上午，{role}{PER}在{GPE}谈到了{thing}的新变化。
{ORG}最近连续{act}，效果超出预期。
为什么要重视{thing}？{PER}的回答是：{thing2}太重要了。
{num}年来，{GPE}围绕{thing}做了大量工作。
尽管{thing}遇到了困难，{role}们仍然坚持{act}。
“我们正在想办法{act}，”{ORG}的{role}{PER}表示。
在{GPE}，{thing}已经成为{role}最关心的话题之一。
调查发现，{percent}的{role}对{thing}感到满意。
除了{thing}以外，{thing2}同样需要更多的支持。
{LOC}旁边的一块牌子上写着有关{thing}的说明。
{PER1}把{thing}的经验介绍给了{PER2}。
按照计划，{GPE}将在{date}之前{act}。
{ORG}拿出{money}，专门用于{thing}和{thing2}。
""".splitlines()

TRAIN_BY_TOPIC = {
    "体育": """\
比赛进行到第{num}分钟，{PER}接队友传球后破门，{thing}沸腾了。
{ORG}队在{thing}中以{num}比{num2}获胜，{role}{PER}表现出色。
{role}{PER}赛后说，球队的体能和配合都还要加强。
下半场{GPE}队加强进攻，终于{act}。
这是{PER}第{num}次参加{thing}，他的目标是站上领奖台。
看台上坐满了观众，欢呼声一浪高过一浪。
""",
    "军事": """\
{date}凌晨，{num}架{thing}从{LOC}起飞，执行任务。
{role}{PER}下达命令后，部队迅速进入{thing2}，准备{act}。
新型{thing}的射程超过{num}公里，已经交付部队使用。
{GPE}军方宣布，将在{LOC}附近海域{act}。
警报响起，{role}们在{num}分钟内完成集结。
这支部队常年驻守在{LOC}，担负警戒任务。
""",
    "经济": """\
{GPE}央行决定{act}，{thing}随即上涨了{percent}。
{ORG}上半年实现{thing}{money}，同比增长{percent}。
{role}{PER}分析说，{thing}的波动与国际行情有关。
受{thing}影响，{GPE}的企业成本上升，{thing2}有所减少。
两地签订了{num}份合同，总额达到{money}。
市场需求回暖，厂家纷纷增加库存。
""",
    "教育": """\
新学期开始，{ORG}的{num}名新生走进校门，领到了{thing}。
{role}{PER}用讲故事的办法上课，孩子们都爱听。
{GPE}今年的{thing}有{num}万人报名，比去年略有增加。
为了让山里的孩子读上书，{role}{PER}坚持了{num}年。
{ORG}宣布{act}，成绩优秀的学生可以优先选择专业。
同学们认真记笔记，不懂就举手提问。
""",
    "医药": """\
{ORG}收治了{num}名病人，{role}{PER}连夜会诊。
研究人员发现，这种{thing}能有效缓解症状，治愈率达到{percent}。
{role}{PER}提醒，出现发热、咳嗽要及时就医。
{GPE}卫生部门呼吁居民尽早{act}。
病人术后恢复良好，{num}天后就可以出院。
这种{thing}每天服用{num}次，不宜与酒同服。
""",
    "农业": """\
{GPE}今年种了{num}万亩{thing}，长势喜人。
{role}{PER}家的{thing}卖出了好价钱，一年收入{money}。
入春以来雨水偏少，{role}们忙着浇地、{act}。
{ORG}的技术人员来到地头，手把手教{role}管理{thing}。
每亩地可以多收{num}斤，乡亲们都很高兴。
秋后村里家家户户晒粮入仓。
""",
    "交通": """\
从{GPE1}到{GPE2}的{thing}正式通车，行程缩短到{num}分钟。
{LOC}路段早高峰车流量大，{role}{PER}在现场指挥。
节日期间，{ORG}{act}，运送旅客{num}万人次。
因大雾，{GPE}的{thing}停运了{num}小时。
新线路设{num}个站，沿途经过{LOC}。
请驾驶员减速慢行，保持车距。
""",
    "艺术": """\
{PER}的新作《{LOC}》在{ORG}首演，台下掌声不断。
这幅{thing}完成于{year}，现由{ORG}收藏。
{role}{PER}从小学习{thing}，{num}岁时就登台表演。
演出在{GPE}持续了{num}天，观众意犹未尽。
线条流畅，色彩明快，是{role}{PER}作品的特点。
幕布缓缓拉开，灯光落在台中央。
""",
}

TEST_BY_TOPIC = {
    "体育": """\
终场哨响，{GPE}队以{num}比{num2}结束了这场{thing}。
{PER}在最后一投中打破了{thing}纪录，观众起立鼓掌。
{ORG}的{role}正在抓紧训练，力争{act}。
""",
    "军事": """\
{num}枚{thing}准确命中目标，{role}{PER}向指挥所报告。
官兵们冒着严寒在{LOC}训练，重点是{act}。
{GPE}打算购买{num}艘{thing}，加强近海防御。
""",
    "经济": """\
{date}收盘时，{thing}报{num}点，成交额为{money}。
{ORG}说，今后将通过{act}来应对{thing}的压力。
{role}{PER}预测，下半年{GPE}的经济增速约为{percent}。
""",
    "教育": """\
{ORG}今年计划招收{num}人，{thing}的要求有所提高。
放学以后，{role}{PER}还在为学生讲解{thing}。
{GPE}的乡村学校添置了新桌椅，并且{act}。
""",
    "医药": """\
{role}{PER}介绍，早发现、早治疗是战胜疾病的关键。
服用这种{thing}后，{num}名病人的疼痛明显减轻。
{ORG}连夜{act}，病人终于脱离危险。
""",
    "农业": """\
地里的{thing}熟了，{role}{PER}一家起早贪黑地干活。
{GPE}推广的新品种每亩增收{num}元，{role}们尝到了甜头。
雨后正是{act}的好时候，村里没有一个闲人。
""",
    "交通": """\
由于施工，{LOC}一带的{thing}改道行驶。
{ORG}提醒出行的人提前{num}分钟到站，注意{thing}安排。
{role}{PER}每天往返于{GPE1}和{GPE2}之间，里程超过{num}公里。
""",
    "艺术": """\
{role}{PER}用{num}年时间完成了这部{thing}。
展厅里陈列着{num}件作品，其中{thing}最引人注目。
{ORG}在{GPE}连演{num}场，场场爆满。
""",
}
TRAIN_BY_TOPIC = {label: text.splitlines() for label, text in TRAIN_BY_TOPIC.items()}
TEST_BY_TOPIC = {label: text.splitlines() for label, text in TEST_BY_TOPIC.items()}
