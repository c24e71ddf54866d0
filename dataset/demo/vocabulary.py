"""The common words that all kinds share: English, Chinese, by category; opposites, names, calendar, sizes."""

# category (English, Chinese) -> English:Chinese pairs
_CATEGORIES = {
    ("animal", "动物"): "cat:猫 dog:狗 horse:马 cow:牛 sheep:羊 pig:猪 bird:鸟 fish:鱼 tiger:老虎 lion:狮子 "
    "elephant:大象 monkey:猴子 rabbit:兔子 mouse:老鼠 bee:蜜蜂 ant:蚂蚁 duck:鸭子 whale:鲸鱼",
    ("fruit", "水果"): "apple:苹果 banana:香蕉 orange:橙子 pear:梨 grape:葡萄 lemon:柠檬",
    ("vegetable", "蔬菜"): "potato:土豆 onion:洋葱 carrot:胡萝卜 cabbage:白菜",
    ("colour", "颜色"): "red:红色 blue:蓝色 green:绿色 yellow:黄色 black:黑色 white:白色 brown:棕色 pink:粉色",
    ("body part", "身体部位"): "hand:手 foot:脚 head:头 eye:眼睛 ear:耳朵 nose:鼻子 mouth:嘴 leg:腿",
    ("job", "职业"): "teacher:老师 doctor:医生 nurse:护士 farmer:农民 cook:厨师 driver:司机 singer:歌手 writer:作家",
    ("vehicle", "交通工具"): "car:汽车 bus:公共汽车 train:火车 plane:飞机 ship:轮船 bicycle:自行车",
    ("clothing", "衣物"): "hat:帽子 shirt:衬衫 coat:外套 shoe:鞋",
    ("drink", "饮料"): "tea:茶 coffee:咖啡 milk:牛奶 juice:果汁",
    ("furniture", "家具"): "table:桌子 chair:椅子 bed:床 desk:书桌",
    # these are only translated and listed, never asked for their category
    ("", ""): "mother:母亲 father:父亲 friend:朋友 sun:太阳 moon:月亮 star:星星 sea:大海 river:河流 mountain:山 "
    "tree:树 flower:花 rain:雨 snow:雪 wind:风 fire:火 stone:石头 house:房子 door:门 window:窗户 key:钥匙 book:书 "
    "pen:钢笔 paper:纸 bag:包 box:盒子 cup:杯子 knife:刀 phone:电话 map:地图 letter:信 money:钱 ball:球 bread:面包 "
    "rice:米饭 water:水 egg:鸡蛋 cake:蛋糕 school:学校 hospital:医院 shop:商店 park:公园 bridge:桥 city:城市 "
    "village:村庄 music:音乐 story:故事 game:游戏 gold:金子",
}


def _pairs(text: str) -> list[tuple[str, str]]:
    """'cat:猫 dog:狗' -> [('cat', '猫'), ('dog', '狗')]."""
    return [(english, chinese) for english, chinese in (item.split(":") for item in text.split())]


WORDS = [pair for text in _CATEGORIES.values() for pair in _pairs(text)]
# (English word, Chinese word, English category, Chinese category)
CATEGORY_OF = [(*pair, *category) for category, text in _CATEGORIES.items() if category[0] for pair in _pairs(text)]
ENGLISH_WORDS = [english for english, _ in WORDS]
CHINESE_WORDS = [chinese for _, chinese in WORDS]

# the words that lists are made of and that somebody likes or buys
_LISTED = "cat dog horse cow bird fish tea milk apple bread book pen cup box sun moon star tree rain snow"
LISTED_OF = {
    "en": [english for english in ENGLISH_WORDS if english in _LISTED.split()],
    "zh": [chinese for english, chinese in WORDS if english in _LISTED.split()],
}

_OPPOSITES_EN = (
    "big:small hot:cold long:short high:low fast:slow new:old good:bad early:late heavy:light open:closed full:empty "
    "hard:soft wet:dry clean:dirty strong:weak rich:poor happy:sad near:far left:right up:down day:night true:false "
    "buy:sell win:lose love:hate come:go more:less north:south east:west"
)
_OPPOSITES_ZH = (
    "大:小 热:冷 长:短 高:低 快:慢 新:旧 好:坏 早:晚 重:轻 开:关 满:空 硬:软 湿:干 干净:肮脏 强:弱 富:穷 高兴:难过 "
    "近:远 左:右 上:下 白天:黑夜 真:假 买:卖 赢:输 爱:恨 来:去 多:少 北:南 东:西"
)


def _both_ways(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [way for one, other in pairs for way in ((one, other), (other, one))]


# (word, its opposite), both directions, the two languages in the same order
OPPOSITES_OF = {"en": _both_ways(_pairs(_OPPOSITES_EN)), "zh": _both_ways(_pairs(_OPPOSITES_ZH))}

_NAMES = {
    "en": "Anna Ben Emma Frank Jack Kate Leo Mary Paul Rosa Sam Tom",
    "zh": "小明 小红 小刚 小丽 小华 小军 小芳 小强 小伟 小兰 小梅 小龙",
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
