"""Sentence templates of the entity sample. Training and test share none.

``{PER}``, ``{GPE}``, ``{LOC}`` and ``{ORG}`` are entities; a digit after the label
(``{PER1}``) names the same entity again.
Lower-case slots are filled with words that are no entities.
"""

from __future__ import annotations


def _listed(text: str) -> list[str]:
    """Pieces of a sentence written one after the other, as a list; they may be empty."""
    return text.split("|")


TRAIN = """\
{PER}昨天在{GPE}会见了{ORG}的代表。
{ORG}{job}{PER}表示，{thing}将于{date}公布。
{date}，{PER}从{GPE1}出发，{num}小时后到达{GPE2}。
{GPE}代表团参观了{ORG}和{LOC}。
据{ORG}报道，{GPE}发生了{num}级地震，{LOC}一带震感明显。
{PER1}说：“{thing}已经完成。”{PER1}还感谢了{ORG}。
{LOC}位于{GPE}东部，全长{num}公里。
{ORG1}与{ORG2}签署了{thing}，总金额达{money}。
{GPE1}和{GPE2}将在{date}举行第{num}次会谈。
{job}{PER1}、{PER2}和{PER3}出席了{ORG}的{thing}。
游客可以从{GPE}乘车前往{LOC}，车程约{num}分钟。
{PER}毕业于{ORG}，现任{ORG2}{job}。
{year}，{PER}出生在{GPE}的一个普通家庭。
{ORG}的总部设在{GPE}，在{GPE2}有{num}家分店。
洪水漫过{LOC}，{GPE}紧急转移了{num}人。
{GPE}政府决定投资{money}改造{LOC}。
记者{PER}从{GPE}发回的消息说，{thing}进展顺利。
{PER1}和{PER2}都是{ORG}的老职工。
{GPE1}、{GPE2}、{GPE3}三地共同启动了{thing}。
{ORG}计划在{LOC}附近修建一座新的办公楼。
{PER}获得了由{ORG}颁发的{year}度奖项。
登山队员在{LOC1}遇险，{num}小时后在{LOC2}获救。
{job}{PER}走访了{GPE}的{num}户人家。
受台风影响，{GPE}关闭了{LOC}。
{ORG}宣布，{PER}不再担任{job}。
{PER}向{ORG}捐赠了{money}。
来自{GPE}的{PER}在{thing}中得了第{num}名。
{ORG}聘请{PER}为{job}，任期{num}年。
{LOC1}和{LOC2}之间将建一条新的步道。
{PER1}告诉{PER2}，{ORG}的{thing}已经推迟。
{GPE}警方在{LOC}抓获了{num}名嫌疑人。
{PER}的父亲曾在{ORG}工作了{num}年。
{GPE}的冬天很冷，{LOC}的湖面早早结了冰。
{ORG1}起诉{ORG2}违反{thing}，案件在{GPE}审理。
{date}上午，{PER}率队抵达{GPE}，下榻在{LOC}旁边。
法官认为{ORG}应当赔偿{PER}{money}。
{GPE}{job}{PER}对{thing}表示欢迎。
大雾笼罩{LOC}，{ORG}取消了{num}个航班。
{PER1}写信给{PER2}，谈到了在{GPE}的生活。
{ORG}在{GPE}设立了办事处，{PER}任负责人。
我和{PER}约好周末去{LOC}散步。
{PER}是{GPE}人，今年{num}岁。
这批设备由{ORG}制造，经{GPE}运往{GPE2}。
{GPE}每年有{num}万人到{LOC}旅游。
{LOC}的保护工作由{ORG}负责。
{PER}在{LOC}拍摄了{num}张照片，送给了{ORG}。
{GPE1}击败{GPE2}，{PER}独得{num}分。
{ORG}的研究人员{PER}发现，{LOC}的水位正在下降。
{PER}辞职后回到了{GPE}老家。
在{PER}的带领下，{ORG}去年盈利{money}。
{GPE1}与{GPE2}之间的{LOC}将于{date}通车。
{ORG}附近的{LOC}最近正在施工。
{PER}因涉嫌受贿被{ORG}调查。
经{ORG}批准，{GPE}将举办{thing}。
{PER}第{num}次登上{LOC}。
{GPE}居民{PER}向{ORG}反映了噪音问题。
{date}，{ORG}与{GPE}教育部门合作开设了培训班。
{PER1}接替{PER2}出任{ORG}{job}。
船队从{LOC}起航，经过{LOC2}，最后抵达{GPE}。
{GPE}的{ORG}昨日对外开放。
“{thing}很重要，”{PER}在{ORG}说。
{ORG}{job}{PER1}与{GPE}{job}{PER2}进行了会谈。
{PER}把公司从{GPE1}搬到了{GPE2}。
{num}名学生在{PER}老师的带领下参观了{LOC}。
{ORG}今天开盘上涨{percent}，{ORG2}下跌。
{GPE}北部的{LOC}发现了一种新的植物。
{PER}和妻子{PER2}定居在{GPE}。
救援人员已经赶到{LOC}，{ORG}也派出了{num}名队员。
{GPE}外交部发言人{PER}拒绝评论{thing}。
{PER}效力于{ORG}，曾代表{GPE}参加比赛。
{ORG1}、{ORG2}联合发布了{thing}。
我国与{GPE}的贸易额去年增长了{percent}。
{LOC}大桥由{ORG}设计，{PER}担任总工程师。
听说{PER1}要去{GPE}，{PER2}十分高兴。
{GPE}的{PER}用{num}天走完了{LOC}。
{ORG}的{PER}教授来到{GPE}讲学。
{thing}在{LOC}举行，{GPE}等{num}个地区派队参加。
{PER}被评为{GPE}的优秀{job}。
{ORG}承认{thing}存在问题，{PER}向公众道歉。
{GPE}至{GPE2}的列车途经{LOC}。
{PER}在{ORG}做手术，手术持续了{num}个小时。
{LOC}每到春天就开满了花，{PER}常去那里写生。
{ORG}将向{GPE}灾区运送{num}吨粮食。
{PER1}、{PER2}分别获得第一名和第二名。
{GPE}是一座有{num}年历史的古城。
{ORG}招收{num}名新员工。
昨晚{LOC}突降大雨。
{PER}没有参加{thing}。
""".splitlines()

TRAIN_EMPTY = """\
今天的天气很好，适合出门走走。
{num}名志愿者参加了{thing}。
{date}，气温下降了{num}度。
这本书的价格是{money}，比去年便宜。
{job}们对{thing}的看法并不一致。
会议一直开到晚上{num}点才结束。
他把{food}放在桌上，转身去拿{tool}。
妈妈买了{num}斤{food}和一袋{food2}。
那只{animal}在树下睡着了。
{thing}的进展比预想的慢。
请在{date}以前提交{thing}。
孩子们围着{animal}看了很久。
她觉得{colour}的{tool}比{colour2}的好看。
预计明天有{weather}，请带好{tool}。
这条路太窄，两辆车不能同时通过。
去年的销量增长了{percent}，利润却没有变化。
老人每天早上都要喝一杯{food}。
我们花了{num}天才修好{tool}。
有人认为{thing}应当推迟，也有人反对。
一位{job}告诉我，{thing}还没有开始。
房间里只剩下一张桌子和{num}把椅子。
{thing}的报名人数已经超过{num}人。
医生建议多喝水，少吃{food}。
由于{weather}，{thing}改期举行。
他不知道该怎么回答这个问题。
这次{thing}非常{adjective}。
学生们安静地读书，窗外下着{weather}。
""".splitlines()

# Training rows of the sample only; pretraining does not see these.
MORE_TRAIN = """\
{PER}对{ORG}的态度很坚决。
法院驳回了对{ORG}的起诉，{PER}没有上诉。
警方正在对{PER}进行讯问。
{PER}小时候住在{GPE}，后来去{GPE2}读书。
{PER}从小在{GPE}生活，长大后当了{job}。
{PER}曾是{ORG}的{job}，退休后回到{GPE}。
{PER}曾在{GPE}工作多年。
{ORG}曾为{GPE}提供{thing}。
{PER}一直想去{LOC}看一看。
{PER}上月离开{GPE}，这个月又去了{GPE2}。
{ORG}本周与{ORG2}讨论{thing}。
{GPE}今年春天启用了新的车站。
{PER}前天在{LOC}受伤，被送到{ORG}。
以前{LOC}的空气很差，现在已经变好。
目前{GPE}的情况稳定，{ORG}正在处理。
如今{PER}已经离开{ORG}，独自生活。
现在{LOC}附近已经没有人居住。
{LOC}的污染问题由来已久，{ORG}多次提出建议。
{GPE}的学校、医院和道路都需要修建。
这笔钱用于修建{GPE}的道路。
{ORG}出资{money}，帮助{GPE}建设图书馆。
{ORG}派{PER}前往{GPE}处理{thing}。
{ORG}派出{num}名医生到{GPE}。
由{PER}负责的{thing}昨天启动。
{thing}由{ORG}组织，{PER}主持。
{PER}主持了{GPE}的{thing}开幕式。
火灾发生后，{ORG}的员工迅速离开。
事故发生在{LOC}附近。
{LOC}与{LOC2}相距{num}公里。
从{GPE}到{LOC}的路很难走。
从{LOC}往南走，就到了{GPE}。
{GPE1}、{GPE2}和{GPE3}的代表都来了。
{GPE1}、{GPE2}的游客越来越多。
{PER1}和{PER2}在{GPE}相遇。
{PER1}、{PER2}两人都在{ORG}上班。
{PER1}是{PER2}的哥哥。
{PER1}的老师是{PER2}。
{PER1}请{PER2}吃饭，{PER2}没有来。
{PER1}被选为{job}，{PER2}落选。
{PER}当上了{ORG}的{job}。
{PER}考上了{ORG}，全家都很高兴。
二十年前，{PER}进入{ORG}学习。
{ORG}在{GPE}开了一家新店。
{ORG}的工厂设在{GPE}，有{num}名工人。
来自{GPE}的学生参观了{ORG}。
{num}名{GPE}游客在{LOC}迷路。
{GPE}队输给了{GPE2}队，比分是{num}比{num2}。
{ORG}队今天赢了{GPE}队。
{ORG}买下了{ORG2}的大楼。
{ORG}并入{ORG2}，名称不变。
{ORG}希望{GPE}方面给予支持。
{GPE}要求{ORG}停止{thing}。
{PER}参加完{thing}就飞回{GPE}。
{PER}带着孩子去了{LOC}。
{PER}和家人一起搬离{GPE}。
{PER}说自己最喜欢{LOC}。
{PER}说他没有见过{PER2}。
{PER}认为{thing}不重要，{PER2}不同意。
有人问{PER}为什么去{GPE}。
谁也不知道{PER}去了哪里。
门口站着{PER}，手里拿着{tool}。
{LOC}下起了{weather}，游人纷纷离开。
{date}，{GPE}迎来了第一场{weather}。
{GPE}限制车辆进入{LOC}。
为了发展旅游，{GPE}修整了{LOC}。
科学家{PER}到{LOC}考察地质。
据介绍，{ORG}{job}{PER}已经到任。
据说{PER}与{thing}有关。
感谢{PER}，感谢{ORG}，感谢{GPE}的朋友。
{GPE}人喜欢吃{food}，{GPE2}人喜欢喝{food2}。
""".splitlines()
MORE_TRAIN_EMPTY = """\
姐姐喜欢喝{food}，哥哥喜欢吃{food2}。
爷爷和奶奶在院子里种了花。
叔叔买了一台{tool}，阿姨很喜欢。
明天我们打算去看电影。
后天是节日，大家都休息。
{animal}跑得很快，谁都追不上。
院子里有一只{animal}和两只{animal2}。
这种{food}的味道很好，很多人都爱吃。
{tool}放在桌子上，{tool2}放在椅子上。
如果下雨，{thing}就改到室内。
大多数{job}支持{thing}。
本周共有{num}人申请{thing}。
到目前为止，{thing}已经收到{money}。
一名{job}说，他从来没有见过{animal}。
下班以后，他们一起去吃{food}。
警察找到了丢失的{tool}。
工人们正在修理{tool}。
两名学生受伤，已经送往医院。
""".splitlines()

TEST = """\
{ORG}星期三证实，{PER}已经递交辞呈。
{GPE}议会以{num}票对{num2}票通过了{thing}。
{PER}在{GPE}机场对记者表示，{thing}不会取消。
连日暴雨之后，{LOC}水位上升，{GPE}发出警报。
{ORG}与{GPE}大学生联合举办了{thing}。
负责此案的{job}{PER}拒绝透露细节。
{GPE1}总统{PER}下周将出访{GPE2}。
{num}年前，{PER1}和{PER2}一起创办了{ORG}。
穿过{LOC}，再走{num}公里就是{GPE}。
{ORG}的股东大会昨天在{GPE}召开，{PER}缺席。
代表{ORG}发言的是{job}{PER}。
{PER}带队攀登{LOC}，途中遇到{weather}。
{GPE}出产的{food}深受{GPE2}消费者喜爱。
{ORG}欠{ORG2}{money}，至今没有归还。
{PER1}的妻子{PER2}出生于{GPE}。
当地渔民在{LOC}打捞起一艘沉船。
{GPE}球迷高喊{PER}的名字。
{LOC}是{GPE}最有名的风景区。
{date}夜里，{ORG}仓库起火，损失{money}。
{PER1}、{PER2}以及{ORG}的{job}一同到场。
{GPE}移民{PER}开了一家{food}店。
只有{PER}一个人投了反对票。
{ORG}将总部迁往{GPE}，{num}名员工随行。
{GPE}军队撤出{LOC}，双方停火。
{PER}把{thing}形容为一次{adjective}的尝试。
为纪念{PER}，{GPE}建了一座图书馆。
{ORG1}总经理{PER1}约见{ORG2}总经理{PER2}。
在{GPE}留学期间，{PER}结识了{PER2}。
{LOC}沿岸有{num}个村庄，{GPE}准备统一搬迁。
{ORG}今年第{num}次下调价格。
{PER}领到了{ORG}发的{num}元奖金。
{GPE}与{ORG}的谈判破裂。
{PER}逝世的消息传到{GPE}，人们十分悲痛。
沿{LOC}骑行{num}天，{PER}终于看到了{LOC2}。
“{GPE}欢迎你们！”{PER}对{ORG}的客人说。
{ORG}驻{GPE}代表{PER}会见了{job}{PER2}。
""".splitlines()

TEST_EMPTY = """\
电梯坏了，大家只好走楼梯。
{num}岁的他第一次坐飞机。
{food}涨价了，{food2}却便宜了。
他一边听音乐，一边擦{tool}。
{thing}的结果要到{date}才能知道。
多数{job}赞成提高工资。
{colour}的{animal}蹲在门口。
听完{job}的介绍，观众鼓起掌来。
{weather}过后，街道很快恢复了平静。
报名费{money}，可以分两次交。
她学会了用{tool}做{food}。
{percent}的受访者没有听说过{thing}。
""".splitlines()

# Sentences of the training split and of pretraining are also put together from an opening, a subject, a predicate and
# a tail. A slot's digit keeps the parts' names apart.
OPENINGS = _listed(
    "|||||{date7}，|据{ORG7}消息，|在{GPE7}，|近日，|昨天下午，|随后，|与此同时，|{year}，|听说|"
    "有人说，|不久前，|按照安排，|为了{thing7}，|上午，|因为{weather}，|今年夏天，|在{LOC7}，|这时，|"
    "报道称，|事实上，|第二天，|经{ORG7}同意，|如果{thing7}顺利，|作为{GPE7}的代表，"
)
SUBJECTS = _listed(
    "{PER}|{PER}|{ORG}|{ORG}|{GPE}|{LOC}|{ORG}{job}{PER}|{PER}和{PER2}|{GPE}的{PER}|{job}{PER}|"
    "来自{GPE}的{job}{PER}|{GPE}{job}{PER}|{ORG}、{ORG2}|{GPE}、{GPE2}|位于{GPE}的{ORG}|"
    "{LOC}和{LOC2}|{num}名{job}|{ORG}的{PER}|{PER}、{PER2}、{PER8}|{GPE}队|{GPE}方面|{GPE}政府|他|她|"
    "大家|我们|这家公司|孩子们|那只{animal}|专家{PER}|{ORG}发言人{PER}"
)
PREDICATES = _listed(
    "去了{LOC3}|到过{GPE3}|访问{GPE3}|加入{ORG3}|离开了{ORG3}|见到了{PER3}|把{thing}交给{PER3}|"
    "从{GPE3}来到{GPE4}|与{ORG3}合作|支持{PER3}的看法|认为{ORG3}做错了|批评了{GPE3}|路过{LOC3}|"
    "住在{LOC3}附近|把{tool}送给{PER3}|卖掉了{num}台{tool}|带来{num}斤{food}|说{PER3}已经到了{GPE3}|"
    "介绍了{thing}的情况|准备{thing}|参加{ORG3}的{thing}|在{LOC3}等候{PER3}|为{GPE3}捐了{money}|"
    "修建了{LOC3}|被{ORG3}录取|接受{ORG3}的邀请|担任{ORG3}{job2}|向{PER3}道歉|打败了{GPE3}|"
    "受到{PER3}和{PER4}的欢迎|买下{ORG3}|停在{LOC3}前面|属于{GPE3}|离{GPE3}有{num}公里|"
    "发现了一只{animal2}|讨论{thing}|喜欢{food}和{food2}|在{GPE3}举行{thing}|经过{LOC3}和{LOC4}|"
    "感谢{PER3}|想念{GPE3}的{food}|同{GPE3}、{GPE4}签约|负责{LOC3}的管理|写了一封信给{ORG3}|"
    "回到{GPE3}的{LOC3}|看望{job2}{PER3}|主办{thing}|起诉{ORG3}|答应帮助{PER3}|没有去过{GPE3}|"
    "很{adjective}|变得{adjective}|推迟了{thing}|投入{money}|在{ORG3}工作|毕业于{ORG3}|"
    "希望{GPE3}早日恢复{thing}|被评为{job2}|飞往{GPE3}|登上{LOC3}|沿着{LOC3}向前走|"
    "搬进了{LOC3}旁的新家"
)
TAILS = _listed(
    "。|。|。|。|。|，花了{money}。|，用了{num}天。|，受到{PER5}的称赞。|，{GPE5}也不例外。|"
    "，并感谢{ORG5}。|，然后去了{LOC5}。|，{PER5}没有说话。|，地点在{LOC5}。|，引起{GPE5}的关注。|"
    "，{ORG5}对此表示欢迎。|，时间是{date}。|，“{thing2}很{adjective}，”{PER5}说。|"
    "，其中有{PER5}和{PER6}。|，比{GPE5}多{percent}。|，而{PER5}留在{GPE5}。|；{ORG5}则相反。|"
    "，他说。|，大家都很高兴。|，{PER}说。|，{GPE}也是这样。|？|！"
)
PARTS = (OPENINGS, SUBJECTS, PREDICATES, TAILS)
