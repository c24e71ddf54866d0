"""Small stories in both languages, the same sentences side by side; only for pretraining."""

from demo.common import Dice
from demo.vocabulary import NAMES_OF, WEEKDAYS_OF, WORDS


def _pairs_of(words: str) -> list[tuple[str, str]]:
    return [pair for pair in WORDS if pair[0] in words.split()]


_GOODS = _pairs_of("hat book map cake cup ball box bag pen shirt coat bicycle chair table")
_PLACES = _pairs_of("school hospital shop park city village river bridge")
_ANIMALS = _pairs_of("cat dog horse bird rabbit duck sheep cow")
_FOODS = _pairs_of("bread rice cake tea milk juice coffee")

# {n} and {m} are people, {a} an animal, {g} a thing, {h} another, {p} a place, {q} another, {f} food, {d} a weekday,
# {k} a small number and {k1} the next one
_STORIES = {
    "en": (
        "On {d} {n} went to the {p}. There {n} met {m}. {m} had a {g} and gave it to {n}. "
        "{n} was happy and said thank "
        "you. Now {n} has the {g}.",
        "{n} has a {a}. The {a} likes {f}. Every morning {n} gives the {a} some {f}, "
        "and then they walk to the {p}. In the "
        "evening the {a} sleeps near the {g}.",
        "{m} lost a {g}. {m} looked in the {p}, but the {g} was not there. "
        "{m} looked in the {q}. There it was. {n} had "
        "found the {g} in the {q} on {d}.",
        "{n} wanted to buy a {g}. The {g} cost {k1} yuan, but {n} had only {k} yuan. "
        "{m} gave {n} one yuan. So {n} could "
        "buy the {g}.",
        "It rained on {d}. {n} and {m} stayed at home. {n} read a story about a {a} in the {p}, "
        "and {m} made {f}. When the "
        "rain stopped, they went to the {q}.",
        "There were {k} people in the {p}. Then {n} came, and there were {k1}. "
        "They ate {f} and talked about a {a}. {m} "
        "did not come; {m} was in the {q}.",
        "{n} put the {g} into a bag and the {h} into a box. "
        "{m} opened the box and took out the {h}. The {g} was still in "
        "the bag.",
        "The {a} was hungry. It saw some {f} in the {p}. {n} said: wait. "
        "{m} gave the {a} the {f}. The {a} was not hungry "
        "any more.",
        "{n} lives near the {p} and {m} lives near the {q}. "
        "On {d} {n} walks from the {p} to the {q}. {m} is glad when {n} "
        "comes with {f}.",
        "{n} asked for a {g}. {m} brought a {h}. {n} laughed: the {h} was nice too. They left the {h} in the {p}.",
    ),
    "zh": (
        "{d}，{n}去了{p}，在那里遇到了{m}。{m}有一件东西：{g}，送给了{n}。{n}很高兴，说了谢谢。现在{g}是{n}的。",
        "{n}养了一只动物：{a}。{a}喜欢{f}。每天早上{n}给{a}一些{f}，然后一起走到{p}。晚上{a}睡在{g}旁边。",
        "{m}丢了东西，是{g}。{m}在{p}找，没有找到。{m}又去{q}找，找到了。原来{d}那天{n}在{q}看见了{g}。",
        "{n}想买{g}。{g}卖{k1}元，可是{n}只有{k}元。{m}给了{n}一元，于是{n}买到了{g}。",
        "{d}下雨了，{n}和{m}待在家里。{n}读了一个故事，讲的是{p}里的{a}，{m}做了{f}。雨停了，他们去了{q}。",
        "{p}里有{k}个人。后来{n}来了，就有{k1}个人。大家吃着{f}，说起了{a}。{m}没有来，{m}在{q}。",
        "{n}把{g}放进包里，把{h}放进盒子里。{m}打开盒子，拿出了{h}。{g}还在包里。",
        "{a}饿了，看见{p}里有{f}。{n}说：等一等。{m}把{f}给了{a}。{a}不饿了。",
        "{n}住在{p}附近，{m}住在{q}附近。{d}，{n}从{p}走到{q}。{n}带着{f}来，{m}很开心。",
        "{n}要的是{g}，{m}拿来的是{h}。{n}笑了：{h}也很好。他们把{h}留在了{p}。",
    ),
}


def _fields(dice: Dice) -> dict[str, tuple[str, str]]:
    """What happens, as (English, Chinese) pairs."""
    (g, h), (p, q) = dice.sample(_GOODS, 2), dice.sample(_PLACES, 2)
    names = zip(dice.sample(NAMES_OF["en"], 2), dice.sample(NAMES_OF["zh"], 2), strict=True)
    day, few = dice.below(7), dice.between(2, 20)
    n, m = names
    return {
        "n": n,
        "m": m,
        "g": g,
        "h": h,
        "p": p,
        "q": q,
        "a": dice.pick(_ANIMALS),
        "f": dice.pick(_FOODS),
        "d": (WEEKDAYS_OF["en"][day], WEEKDAYS_OF["zh"][day]),
        "k": (str(few), str(few)),
        "k1": (str(few + 1), str(few + 1)),
    }


def pretraining(dice: Dice, count: int = 200) -> list[str]:
    documents = []
    for _ in range(count):
        place, fields, column = dice.below(len(_STORIES["en"])), _fields(dice), dice.below(2)
        texts = [
            _STORIES[language][place].format(**{key: pair[side] for key, pair in fields.items()})
            for side, language in ((0, "en"), (1, "zh"))
        ]
        documents.append("\n".join(texts) if dice.below(4) == 0 else texts[column])
    return documents
