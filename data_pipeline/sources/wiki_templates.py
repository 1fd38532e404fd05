"""Templates that only format a piece of a sentence: what each leaves in plain text.

MediaWiki would expand a template from its definition. Here a table says for the common ones of English, Spanish and
French Wikipedia which of their parameters a reader sees; every other template (boxes, citations, notices) is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

# Parameters of one call, already plain text, by name; those without a name are "1", "2", ...
Parameters = Mapping[str, str]
Rule = Callable[[Parameters], str]

_SUPERSCRIPTS = str.maketrans("0123456789+-−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻")
_CENTURY = re.compile(r"[ivx]+er?(?:siècle(?:av\.j\.-c\.)?)?")
_MONTHS = {
    "en": "January February March April May June July August September October November December".split(),
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre".split(),
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre".split(),
}
_UNITS = {"C": "°C", "F": "°F", "sqmi": "sq mi", "sqft": "sq ft", "cuft": "cu ft", "impgal": "imp gal"}
_SMALLER_UNITS = {"ft": "in", "lb": "oz", "st": "lb", "mi": "yd"}  # of values such as 6 ft 2 in
_BETWEEN_VALUES = {
    "-": "–",
    "–": "–",
    "x": " × ",
    "+/-": " ± ",
    "to": " to ",
    "and": " and ",
    "or": " or ",
    "by": " by ",
}


def rule_for(name: str) -> Rule | None:
    """What a template leaves, or None where it is dropped. Capitals, spaces and underscores do not matter."""
    key = name.casefold().replace(" ", "").replace("_", "").strip()
    if key.startswith("lang-"):
        return _LANG
    # French {{XIXe siècle}} and {{XVIe}} stand for their own names.
    return _RULES.get(key) or (_fixed(name.strip().replace("_", " ")) if _CENTURY.fullmatch(key) else None)


def superscript(text: str) -> str:
    """Digits and signs as the characters of Unicode, so that 10<sup>6</sup> does not become 106."""
    return text.translate(_SUPERSCRIPTS)


def _positional(parameters: Parameters) -> list[str]:
    values: list[str] = []
    while (value := parameters.get(str(len(values) + 1))) is not None:
        values.append(value)
    return values


def _first(names: str) -> Rule:
    """The first of these parameters that is not empty."""
    wanted = names.split()
    return lambda parameters: next((parameters[name] for name in wanted if parameters.get(name)), "")


def _around(before: str, after: str = "", names: str = "1") -> Rule:
    choose = _first(names)

    def rule(parameters: Parameters) -> str:
        text = choose(parameters)
        return before + text + after if text else ""

    return rule


def _joined(separator: str) -> Rule:
    return lambda parameters: separator.join(value for value in _positional(parameters) if value)


def _fixed(text: str) -> Rule:
    return lambda parameters: text


def _pronunciation(parameters: Parameters) -> str:
    """A sound that stands in its own brackets; {{IPA|fr|...}} in a lead is one of the holes in its parentheses."""
    text = parameters.get("1", "")
    return text if text.startswith(("/", "[", "⟨")) else ""


def _last(parameters: Parameters) -> str:
    return (_positional(parameters) or [""])[-1]


def _nihongo(parameters: Parameters) -> str:
    english, kanji, romaji = (parameters.get(name, "") for name in "123")
    shown = [english, romaji] if english else [romaji]
    inside = ", ".join(part for part in (kanji, *shown[1:]) if part)
    return f"{shown[0]} ({inside})" if shown[0] and inside else shown[0] or inside


def _convert(parameters: Parameters) -> str:
    """The value as it was written, without what it was converted to: {{convert|5|to|10|km|mi}} is "5 to 10 km"."""
    value, *rest = _positional(parameters) or [""]
    while len(rest) > 1 and rest[0] in _BETWEEN_VALUES:
        value += _BETWEEN_VALUES[rest[0]] + rest[1]
        rest = rest[2:]
    if not rest:
        return value
    text = f"{value} {_unit(rest[0])}"
    if len(rest) > 2 and _SMALLER_UNITS.get(rest[0]) == rest[2]:
        text += f" {rest[1]} {rest[2]}"
    return text


def _unit(code: str) -> str:
    if len(code) > 1 and code[-1] in "23" and code[:-1].isalpha():
        return code[:-1] + superscript(code[-1])
    return _UNITS.get(code, code)


def _quantity(parameters: Parameters) -> str:
    """French {{unité|5|km|2}} and Spanish {{unidad|5|km}}."""
    number, unit, power = (parameters.get(name, "") for name in "123")
    unit += superscript(power) if power.lstrip("-").isdigit() else ""
    return f"{number} {unit}".strip()


def _val(parameters: Parameters) -> str:
    text = parameters.get("1", "")
    if parameters.get("2"):
        text += f" ± {parameters['2']}"
    if parameters.get("e"):
        text += f"×10{superscript(parameters['e'])}"
    return f"{text} {parameters.get('u') or parameters.get('ul') or ''}".strip()


def _fraction(parameters: Parameters) -> str:
    values = _positional(parameters)
    return " ".join([*values[:-2], "/".join(values[-2:])]) if len(values) > 1 else "1/" + "".join(values)


def _month(value: str, language: str) -> str:
    return _MONTHS[language][int(value) - 1] if value.isdecimal() and 1 <= int(value) <= 12 else value


def _english_date(parameters: Parameters) -> str:
    """{{birth date|1990|5|12}}; what follows the first three parameters is another date or a time."""
    year, month, day = (parameters.get(name, "") for name in "123")
    month = _month(month, "en")
    if not (month and day):
        return f"{month} {year}".strip()
    if parameters.get("df", "").lower() in {"y", "yes"}:
        return f"{day} {month} {year}"
    return f"{month} {day}, {year}"


def _day_first(language: str, separator: str) -> Rule:
    def rule(parameters: Parameters) -> str:
        day, month, year = (parameters.get(name, "") for name in "123")
        return separator.join(part for part in (day, _month(month, language), year) if part)

    return rule


def _as_of(parameters: Parameters) -> str:
    if parameters.get("alt"):
        return parameters["alt"]
    return ("as of " if parameters.get("lc") else "As of ") + _english_date({**parameters, "df": "y"})


def _century(after: str) -> Rule:
    """French {{s|XIX|e}}: "XIXe siècle"."""
    return lambda parameters: f"{parameters.get('1', '')}{parameters.get('2') or 'e'} siècle{after}"


def _two_centuries(parameters: Parameters) -> str:
    first, first_mark, second, second_mark = (parameters.get(name, "") for name in "1234")
    return f"{first}{first_mark} et {second}{second_mark} siècles"


def _siglo(parameters: Parameters) -> str:
    before_christ = " a. C." if parameters.get("2", "").lower().startswith("a") else ""
    return f"siglo {parameters.get('1', '')}{before_christ}"


def _chinese(parameters: Parameters) -> str:
    found = [parameters[name] for name in ("c", "s", "t", "p") if parameters.get(name)]
    return ", ".join(dict.fromkeys(found))


def _ship_class(parameters: Parameters) -> str:
    return f"{parameters.get('1', '')}-class {parameters.get('2', '')}".strip()


_LANG = _first("1 text texte texto")

# Names stand in lower case and without spaces; redirects beside the template that they lead to.
_NAMES: dict[Rule, str] = {
    _first("1 text texte texto content contenu"): """
        nowrap nobr nobreak nowraplinks lnobr small smaller smalldiv big larger large sc smallcaps sm em strong bold
        italic noitalic noitalics nobold normal nobr var mvar math tmath code tt mono kbd samp key uc lc sup sub
        smallsup visibleanchor vanchor notatypo proper propername typo sic! abbr abbrv tooltip abréviation
        abréviationdiscrète abrd abr explain hover unicode polytonic hebrew script/hebrew arabic grecancien grec angbrsc
        nihongo2 ruby ruby-ja linktext flag flagu flagcountry flagg nts formatnum number nombre num ordinal
        sortdate citationneededspan cnspan fact-span citarequeridaspan annotatedlink plainlist flatlist columns-list
        columnslist columnlist colonnes listadecolumnas listacolumnas versalita versalitas negrita cursiva subíndice
        superíndice exp indice ind exposant noir gras italique petit petitescapitales pc souverain souverain-
        zh-hans zh-hant chinois japonais2 texteencolonnes blockindent
    """,
    _first("text texte texto quote 1"): """
        quote blockquote quotation cquote rquote bq citabloque citabloc citationbloc poem poemquote poème
        centeredquote pullquote
    """,
    _first("2 text texte texto"): """
        lang langx langue rtl-lang rtllang wikt-lang wiktlang script sort audio audio-nohelp tri
        citationétrangère citationlangue icon-text font color colour fontcolor
    """,
    _first("lt 3 2 1"): "langwithname",
    _first("lt display 1"): "ill interlanguagelink interlanguagelinkmulti illm ill-wd",
    _first("texte fr 1"): "lien",
    _first("2 1"): "seclink wt wiktionnaire",
    _last: "transliteration translit transl translittération",
    _pronunciation: "ipa api afi",
    _nihongo: "nihongo nihongofoot japonais",
    _chinese: "zh zh-full",
    _convert: "convert cvt convertir conversion",
    _quantity: "unité unite unidad nb",
    _val: "val",
    _fraction: "frac fraction sfrac fracción",
    _english_date: """
        birthdate birthdateandage birth-date bda dob deathdate deathdateandage dda dod startdate startdateandage
        enddate filmdate releasedate dts date-mdy birthyearandage
    """,
    _day_first("fr", " "): "date date- datedenaissance datededécès datesport",
    _day_first("es", " de "): "fecha fechadenacimiento fechadedefunción fechadeinicio",
    _as_of: "asof",
    _century(""): "s s- siècle siècle-",
    _century(" av. J.-C."): "-s -s-",
    _two_centuries: "s2 s2- sp sp-",
    _siglo: "siglo",
    _ship_class: "sclass sclass2",
    _joined(" "): "ship sortname sic",
    _joined(", "): "hlist",
    _joined("\n"): "ubl unbulletedlist",
    _joined(""): "gaps chem chem2 fchim formulechimique",
    _around("c. "): "circa c. ca. ca",
    _around("fl. "): "floruit fl. fl",
    _around("r. "): "reign r.",
    _around("lit. '", "'"): "lit literal literally literaltranslation literaltranslate",
    _around("⟨", "⟩"): "angbr anglebracket anglebrackets",
    _around("« ", " »"): "citation guillemets guill citationcourte",
    _around("«", "»"): "cita",
    _around("– ", " –"): "incise",
    _around("no "): "n° numéro numero",
    _around("p. "): "p.",
    _around("M. "): "m.",
    _around("HMS "): "hms",
    _around("USS "): "uss",
    _around("SS "): "ss",
    _around("RMS "): "rms",
    _around("US$"): "us$ usd",
    _around("£"): "£ gbp pound",
    _around("€"): "€ euro eur",
    _around("₹"): "inr indianrupee",
    _around("¥"): "¥ jpy yen",
    _fixed(" "): "nbsp space spaces esd thinsp hairsp sp0",
    _fixed(" – "): "snd spnd spacedndash spacedendash ndashspaced",
    _fixed("–"): "ndash endash –",
    _fixed("—"): "mdash emdash",
    _fixed(" · "): "· dot middot •",
    _fixed("|"): "! pipe",
    _fixed("="): "=",
    _fixed("'"): "' apostrophe",
    _fixed("'s"): "'s",
    _fixed("ʻ"): "okina ʻokina",
    _fixed("π"): "pi",
    _fixed("CO2"): "co2",
    _fixed("H2O"): "h2o",
    _fixed("er"): "er",
    _fixed("1er"): "1er",
    _fixed("av. J.-C."): "avjc av.j.-c. avj.-c.",
    _fixed("apr. J.-C."): "apjc ap.j.-c. apr.j.-c.",
    _fixed("a. C."): "a.c.",
    _fixed("d. C."): "d.c.",
}
_RULES: dict[str, Rule] = {name: rule for rule, names in _NAMES.items() for name in names.split()}
