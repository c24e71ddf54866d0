"""The common words that all kinds share: English, Chinese, by category; opposites, names, calendar, sizes."""

# category (English, Chinese) -> English:Chinese pairs
_CATEGORIES = {
    ("animal", "动物"): "cat:猫 dog:狗 horse:马 cow:牛 sheep:羊 pig:猪 bird:鸟 fish:鱼 tiger:老虎 lion:狮子 "
    "elephant:大象 monkey:猴子 rabbit:兔子 mouse:老鼠 snake:蛇 bear:熊 duck:鸭子 chicken:鸡 frog:青蛙 bee:蜜蜂 "
    "ant:蚂蚁 wolf:狼 fox:狐狸 whale:鲸鱼",
    ("fruit", "水果"): "apple:苹果 banana:香蕉 orange:橙子 pear:梨 grape:葡萄 peach:桃子 lemon:柠檬 mango:芒果 "
    "cherry:樱桃 plum:李子 strawberry:草莓",
    ("vegetable", "蔬菜"): "potato:土豆 onion:洋葱 carrot:胡萝卜 cabbage:白菜 spinach:菠菜 celery:芹菜",
    ("colour", "颜色"): "red:红色 blue:蓝色 green:绿色 yellow:黄色 black:黑色 white:白色 purple:紫色 brown:棕色 "
    "grey:灰色 pink:粉色",
    ("body part", "身体部位"): "hand:手 foot:脚 head:头 eye:眼睛 ear:耳朵 nose:鼻子 mouth:嘴 leg:腿 tooth:牙齿 "
    "heart:心脏 finger:手指",
    ("job", "职业"): "teacher:老师 doctor:医生 nurse:护士 farmer:农民 cook:厨师 driver:司机 singer:歌手 "
    "writer:作家 soldier:士兵 lawyer:律师 actor:演员",
    ("vehicle", "交通工具"): "car:汽车 bus:公共汽车 train:火车 plane:飞机 ship:轮船 bicycle:自行车 truck:卡车",
    ("instrument", "乐器"): "piano:钢琴 guitar:吉他 drum:鼓 violin:小提琴 flute:长笛",
    ("clothing", "衣物"): "hat:帽子 shirt:衬衫 coat:外套 shoe:鞋 sock:袜子 glove:手套 skirt:裙子",
    ("drink", "饮料"): "tea:茶 coffee:咖啡 milk:牛奶 juice:果汁 beer:啤酒 wine:葡萄酒",
    ("furniture", "家具"): "table:桌子 chair:椅子 bed:床 desk:书桌 sofa:沙发",
    # these are only translated and listed, never asked for their category
    ("", ""): "mother:母亲 father:父亲 son:儿子 daughter:女儿 friend:朋友 sun:太阳 moon:月亮 star:星星 sky:天空 "
    "sea:大海 river:河流 mountain:山 forest:森林 tree:树 flower:花 grass:草 rain:雨 snow:雪 wind:风 cloud:云 "
    "fire:火 stone:石头 island:岛 lake:湖 house:房子 door:门 window:窗户 lamp:灯 clock:钟 key:钥匙 wall:墙 "
    "kitchen:厨房 garden:花园 book:书 pen:钢笔 paper:纸 bag:包 box:盒子 cup:杯子 knife:刀 bottle:瓶子 "
    "phone:电话 map:地图 letter:信 money:钱 ball:球 bread:面包 rice:米饭 water:水 egg:鸡蛋 meat:肉 sugar:糖 "
    "salt:盐 cake:蛋糕 soup:汤 honey:蜂蜜 school:学校 hospital:医院 shop:商店 library:图书馆 park:公园 "
    "street:街道 bridge:桥 village:村庄 city:城市 market:市场 station:车站 winter:冬天 summer:夏天 music:音乐 "
    "picture:图片 story:故事 game:游戏 dream:梦 gold:金子 iron:铁 wood:木头 glass:玻璃",
}


def _pairs(text: str) -> list[tuple[str, str]]:
    """'cat:猫 dog:狗' -> [('cat', '猫'), ('dog', '狗')]."""
    return [(english, chinese) for english, chinese in (item.split(":") for item in text.split())]


WORDS = [pair for text in _CATEGORIES.values() for pair in _pairs(text)]
# (English word, Chinese word, English category, Chinese category)
CATEGORY_OF = [(*pair, *category) for category, text in _CATEGORIES.items() if category[0] for pair in _pairs(text)]
ENGLISH_WORDS = [english for english, _ in WORDS]
CHINESE_WORDS = [chinese for _, chinese in WORDS]
WORDS_OF = {"en": ENGLISH_WORDS, "zh": CHINESE_WORDS}

_OPPOSITES_EN = (
    "big:small hot:cold long:short high:low fast:slow new:old good:bad early:late heavy:light bright:dark "
    "open:closed full:empty hard:soft wet:dry clean:dirty strong:weak rich:poor happy:sad near:far left:right "
    "up:down inside:outside day:night true:false thick:thin wide:narrow deep:shallow loud:quiet easy:difficult "
    "begin:end buy:sell win:lose remember:forget love:hate come:go more:less push:pull laugh:cry alive:dead "
    "north:south east:west"
)
_OPPOSITES_ZH = (
    "大:小 热:冷 长:短 高:低 快:慢 新:旧 好:坏 早:晚 重:轻 明亮:黑暗 开:关 满:空 硬:软 湿:干 干净:肮脏 强:弱 "
    "富:穷 高兴:难过 近:远 左:右 上:下 里面:外面 白天:黑夜 真:假 厚:薄 宽:窄 深:浅 吵闹:安静 容易:困难 "
    "开始:结束 买:卖 赢:输 记住:忘记 爱:恨 来:去 多:少 推:拉 笑:哭 活:死 北:南 东:西"
)


def _both_ways(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [way for one, other in pairs for way in ((one, other), (other, one))]


# (word, its opposite), both directions, the two languages in the same order
OPPOSITES_OF = {"en": _both_ways(_pairs(_OPPOSITES_EN)), "zh": _both_ways(_pairs(_OPPOSITES_ZH))}

_NAMES = {
    "en": "Anna Ben Carl Dora Emma Frank Grace Henry Ivan Jack Kate Leo Mary Nina Oscar Paul Rosa Sam Tom Vera "
    "Will Zoe Alice Bob David Eva Fred George Helen Jane Kevin Lucy Mark Nick Olga Peter Ruth Simon Tina Victor "
    "Adam Laura Martin Sarah Daniel Julia Robert Susan Michael Linda",
    "zh": "小明 小红 小刚 小丽 小华 小军 小芳 小强 小伟 小兰 小梅 小龙 小燕 小雪 小杰 小玲 小波 小飞 小云 "
    "小平 小林 小雨 小文 小英 小光 小海 小天 小春 小月 小江 小山 小青 小东 小亮 小安 小乐 小宁 小新 小美 小星",
}
_WEEKDAYS = {
    "en": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "zh": "星期一 星期二 星期三 星期四 星期五 星期六 星期日",
}
_MONTHS = {
    "en": "January February March April May June July August September October November December",
    "zh": "一月 二月 三月 四月 五月 六月 七月 八月 九月 十月 十一月 十二月",
}
# from the smallest to the biggest
_ANIMAL_SIZES = {
    "en": "ant bee mouse rabbit sheep horse elephant whale",
    "zh": "蚂蚁 蜜蜂 老鼠 兔子 羊 马 大象 鲸鱼",
}
_THING_SIZES = {"en": "key cup chair car bus train mountain", "zh": "钥匙 杯子 椅子 汽车 公共汽车 火车 山"}


def _split(texts: dict[str, str]) -> dict[str, list[str]]:
    return {language: text.split() for language, text in texts.items()}


NAMES_OF = _split(_NAMES)
WEEKDAYS_OF = _split(_WEEKDAYS)
MONTHS_OF = _split(_MONTHS)
# language -> two lists, each from the smallest to the biggest
SIZES_OF = {language: (_split(_ANIMAL_SIZES)[language], _split(_THING_SIZES)[language]) for language in ("en", "zh")}
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
COUNTED_ZH = ["零", "一", "两", "三", "四", "五", "六"]
