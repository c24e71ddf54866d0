"""Countries and chemical elements: the tables behind the facts."""

CONTINENTS = {
    "Asia": "亚洲",
    "Europe": "欧洲",
    "Africa": "非洲",
    "North America": "北美洲",
    "South America": "南美洲",
    "Oceania": "大洋洲",
}

# country | capital | continent | currency, each English:Chinese; "-" where there is no single answer
_COUNTRIES = """
China:中国|Beijing:北京|Asia|yuan:人民币
Japan:日本|Tokyo:东京|Asia|yen:日元
South Korea:韩国|Seoul:首尔|Asia|won:韩元
India:印度|New Delhi:新德里|Asia|rupee:卢比
Thailand:泰国|Bangkok:曼谷|Asia|baht:泰铢
Vietnam:越南|Hanoi:河内|Asia|dong:越南盾
Indonesia:印度尼西亚|-|Asia|rupiah:印尼盾
the Philippines:菲律宾|Manila:马尼拉|Asia|peso:比索
Iran:伊朗|Tehran:德黑兰|Asia|rial:里亚尔
Saudi Arabia:沙特阿拉伯|Riyadh:利雅得|Asia|riyal:里亚尔
Pakistan:巴基斯坦|Islamabad:伊斯兰堡|Asia|rupee:卢比
France:法国|Paris:巴黎|Europe|euro:欧元
Germany:德国|Berlin:柏林|Europe|euro:欧元
Italy:意大利|Rome:罗马|Europe|euro:欧元
Spain:西班牙|Madrid:马德里|Europe|euro:欧元
Portugal:葡萄牙|Lisbon:里斯本|Europe|euro:欧元
Greece:希腊|Athens:雅典|Europe|euro:欧元
Austria:奥地利|Vienna:维也纳|Europe|euro:欧元
Ireland:爱尔兰|Dublin:都柏林|Europe|euro:欧元
Finland:芬兰|Helsinki:赫尔辛基|Europe|euro:欧元
the Netherlands:荷兰|Amsterdam:阿姆斯特丹|Europe|euro:欧元
the United Kingdom:英国|London:伦敦|Europe|pound:英镑
Switzerland:瑞士|Bern:伯尔尼|Europe|franc:瑞士法郎
Sweden:瑞典|Stockholm:斯德哥尔摩|Europe|krona:克朗
Norway:挪威|Oslo:奥斯陆|Europe|krone:克朗
Denmark:丹麦|Copenhagen:哥本哈根|Europe|krone:克朗
Poland:波兰|Warsaw:华沙|Europe|zloty:兹罗提
Russia:俄罗斯|Moscow:莫斯科|Europe|ruble:卢布
Egypt:埃及|Cairo:开罗|Africa|pound:埃及镑
Kenya:肯尼亚|Nairobi:内罗毕|Africa|shilling:先令
Nigeria:尼日利亚|Abuja:阿布贾|Africa|naira:奈拉
Morocco:摩洛哥|Rabat:拉巴特|Africa|dirham:迪拉姆
the United States:美国|Washington:华盛顿|North America|dollar:美元
Canada:加拿大|Ottawa:渥太华|North America|dollar:加元
Mexico:墨西哥|Mexico City:墨西哥城|North America|peso:比索
Cuba:古巴|Havana:哈瓦那|North America|peso:比索
Brazil:巴西|Brasilia:巴西利亚|South America|real:雷亚尔
Argentina:阿根廷|Buenos Aires:布宜诺斯艾利斯|South America|peso:比索
Chile:智利|Santiago:圣地亚哥|South America|peso:比索
Peru:秘鲁|Lima:利马|South America|sol:索尔
Australia:澳大利亚|Canberra:堪培拉|Oceania|dollar:澳元
New Zealand:新西兰|Wellington:惠灵顿|Oceania|dollar:新西兰元
"""

_ELEMENTS = (
    "H:hydrogen:氢 He:helium:氦 Li:lithium:锂 C:carbon:碳 N:nitrogen:氮 O:oxygen:氧 Ne:neon:氖 Na:sodium:钠 "
    "Mg:magnesium:镁 Al:aluminium:铝 Si:silicon:硅 S:sulfur:硫 Cl:chlorine:氯 K:potassium:钾 Ca:calcium:钙 Fe:iron:铁 "
    "Ni:nickel:镍 Cu:copper:铜 Zn:zinc:锌 Ag:silver:银 Sn:tin:锡 I:iodine:碘 Au:gold:金 Hg:mercury:汞 Pb:lead:铅"
)


def _relations(language: str) -> dict[str, list[tuple[str, str, str]]]:
    """Relation -> [(key, entity, value)] in one language; the key is the entity's English name."""
    column = 0 if language == "en" else 1
    table: dict[str, list[tuple[str, str, str]]] = {"capital": [], "continent": [], "currency": []}
    for line in _COUNTRIES.strip().splitlines():
        country, capital, continent, currency = line.split("|")
        key, entity = country.split(":")[0], country.split(":")[column]
        table["continent"].append((key, entity, (continent, CONTINENTS[continent])[column]))
        for relation, value in (("capital", capital), ("currency", currency)):
            if value != "-":
                table[relation].append((key, entity, value.split(":")[column]))
    elements = [item.split(":") for item in _ELEMENTS.split()]
    table["symbol"] = [(english, (english, chinese)[column], symbol) for symbol, english, chinese in elements]
    return table


RELATIONS_OF = {language: _relations(language) for language in ("en", "zh")}
