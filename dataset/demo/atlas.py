"""Countries and chemical elements: the tables behind the facts."""

CONTINENTS = {
    "Asia": "亚洲",
    "Europe": "欧洲",
    "Africa": "非洲",
    "North America": "北美洲",
    "South America": "南美洲",
    "Oceania": "大洋洲",
}

# country | capital | continent | currency | language, each English:Chinese; "-" where there is no single answer
_COUNTRIES = """
China:中国|Beijing:北京|Asia|yuan:人民币|Chinese:汉语
Japan:日本|Tokyo:东京|Asia|yen:日元|Japanese:日语
South Korea:韩国|Seoul:首尔|Asia|won:韩元|Korean:韩语
India:印度|New Delhi:新德里|Asia|rupee:卢比|-
Thailand:泰国|Bangkok:曼谷|Asia|baht:泰铢|Thai:泰语
Vietnam:越南|Hanoi:河内|Asia|dong:越南盾|Vietnamese:越南语
Indonesia:印度尼西亚|-|Asia|rupiah:印尼盾|Indonesian:印尼语
Malaysia:马来西亚|Kuala Lumpur:吉隆坡|Asia|ringgit:林吉特|Malay:马来语
the Philippines:菲律宾|Manila:马尼拉|Asia|peso:比索|-
Mongolia:蒙古|Ulaanbaatar:乌兰巴托|Asia|tugrik:图格里克|Mongolian:蒙古语
Iran:伊朗|Tehran:德黑兰|Asia|rial:里亚尔|Persian:波斯语
Iraq:伊拉克|Baghdad:巴格达|Asia|dinar:第纳尔|-
Saudi Arabia:沙特阿拉伯|Riyadh:利雅得|Asia|riyal:里亚尔|Arabic:阿拉伯语
Nepal:尼泊尔|Kathmandu:加德满都|Asia|rupee:卢比|Nepali:尼泊尔语
Pakistan:巴基斯坦|Islamabad:伊斯兰堡|Asia|rupee:卢比|-
Bangladesh:孟加拉国|Dhaka:达卡|Asia|taka:塔卡|Bengali:孟加拉语
France:法国|Paris:巴黎|Europe|euro:欧元|French:法语
Germany:德国|Berlin:柏林|Europe|euro:欧元|German:德语
Italy:意大利|Rome:罗马|Europe|euro:欧元|Italian:意大利语
Spain:西班牙|Madrid:马德里|Europe|euro:欧元|Spanish:西班牙语
Portugal:葡萄牙|Lisbon:里斯本|Europe|euro:欧元|Portuguese:葡萄牙语
Greece:希腊|Athens:雅典|Europe|euro:欧元|Greek:希腊语
Austria:奥地利|Vienna:维也纳|Europe|euro:欧元|German:德语
Ireland:爱尔兰|Dublin:都柏林|Europe|euro:欧元|-
Finland:芬兰|Helsinki:赫尔辛基|Europe|euro:欧元|-
the Netherlands:荷兰|Amsterdam:阿姆斯特丹|Europe|euro:欧元|Dutch:荷兰语
Belgium:比利时|Brussels:布鲁塞尔|Europe|euro:欧元|-
the United Kingdom:英国|London:伦敦|Europe|pound:英镑|English:英语
Switzerland:瑞士|Bern:伯尔尼|Europe|franc:瑞士法郎|-
Sweden:瑞典|Stockholm:斯德哥尔摩|Europe|krona:克朗|Swedish:瑞典语
Norway:挪威|Oslo:奥斯陆|Europe|krone:克朗|Norwegian:挪威语
Denmark:丹麦|Copenhagen:哥本哈根|Europe|krone:克朗|Danish:丹麦语
Poland:波兰|Warsaw:华沙|Europe|zloty:兹罗提|Polish:波兰语
Hungary:匈牙利|Budapest:布达佩斯|Europe|forint:福林|Hungarian:匈牙利语
Romania:罗马尼亚|Bucharest:布加勒斯特|Europe|leu:列伊|Romanian:罗马尼亚语
Ukraine:乌克兰|Kyiv:基辅|Europe|hryvnia:格里夫纳|Ukrainian:乌克兰语
Russia:俄罗斯|Moscow:莫斯科|Europe|ruble:卢布|Russian:俄语
Iceland:冰岛|Reykjavik:雷克雅未克|Europe|krona:克朗|Icelandic:冰岛语
Egypt:埃及|Cairo:开罗|Africa|pound:埃及镑|Arabic:阿拉伯语
Kenya:肯尼亚|Nairobi:内罗毕|Africa|shilling:先令|-
Nigeria:尼日利亚|Abuja:阿布贾|Africa|naira:奈拉|English:英语
Ghana:加纳|Accra:阿克拉|Africa|cedi:塞地|English:英语
Morocco:摩洛哥|Rabat:拉巴特|Africa|dirham:迪拉姆|-
Tunisia:突尼斯|-|Africa|dinar:第纳尔|Arabic:阿拉伯语
Algeria:阿尔及利亚|Algiers:阿尔及尔|Africa|dinar:第纳尔|-
the United States:美国|Washington:华盛顿|North America|dollar:美元|English:英语
Canada:加拿大|Ottawa:渥太华|North America|dollar:加元|-
Mexico:墨西哥|Mexico City:墨西哥城|North America|peso:比索|Spanish:西班牙语
Cuba:古巴|Havana:哈瓦那|North America|peso:比索|Spanish:西班牙语
Brazil:巴西|Brasilia:巴西利亚|South America|real:雷亚尔|Portuguese:葡萄牙语
Argentina:阿根廷|Buenos Aires:布宜诺斯艾利斯|South America|peso:比索|Spanish:西班牙语
Chile:智利|Santiago:圣地亚哥|South America|peso:比索|Spanish:西班牙语
Peru:秘鲁|Lima:利马|South America|sol:索尔|-
Colombia:哥伦比亚|Bogota:波哥大|South America|peso:比索|Spanish:西班牙语
Uruguay:乌拉圭|Montevideo:蒙得维的亚|South America|peso:比索|Spanish:西班牙语
Australia:澳大利亚|Canberra:堪培拉|Oceania|dollar:澳元|English:英语
New Zealand:新西兰|Wellington:惠灵顿|Oceania|dollar:新西兰元|-
"""

_ELEMENTS = (
    "H:hydrogen:氢 He:helium:氦 Li:lithium:锂 C:carbon:碳 N:nitrogen:氮 O:oxygen:氧 F:fluorine:氟 Ne:neon:氖 "
    "Na:sodium:钠 Mg:magnesium:镁 Al:aluminium:铝 Si:silicon:硅 P:phosphorus:磷 S:sulfur:硫 Cl:chlorine:氯 "
    "K:potassium:钾 Ca:calcium:钙 Ti:titanium:钛 Fe:iron:铁 Co:cobalt:钴 Ni:nickel:镍 Cu:copper:铜 Zn:zinc:锌 "
    "Br:bromine:溴 Ag:silver:银 Sn:tin:锡 I:iodine:碘 W:tungsten:钨 Pt:platinum:铂 Au:gold:金 Hg:mercury:汞 "
    "Pb:lead:铅 U:uranium:铀"
)


def _relations(language: str) -> dict[str, list[tuple[str, str, str]]]:
    """Relation -> [(key, entity, value)] in one language; the key is the entity's English name."""
    column = 0 if language == "en" else 1
    table: dict[str, list[tuple[str, str, str]]] = {"capital": [], "continent": [], "currency": [], "language": []}
    for line in _COUNTRIES.strip().splitlines():
        country, capital, continent, currency, spoken = line.split("|")
        key, entity = country.split(":")[0], country.split(":")[column]
        table["continent"].append((key, entity, (continent, CONTINENTS[continent])[column]))
        for relation, value in (("capital", capital), ("currency", currency), ("language", spoken)):
            if value != "-":
                table[relation].append((key, entity, value.split(":")[column]))
    elements = [item.split(":") for item in _ELEMENTS.split()]
    table["symbol"] = [(english, (english, chinese)[column], symbol) for symbol, english, chinese in elements]
    return table


RELATIONS_OF = {language: _relations(language) for language in ("en", "zh")}
