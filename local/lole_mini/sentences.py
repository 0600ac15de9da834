"""Sentences of the synthetic corpora: locale data of Babel, with numbers spelled out.

Two domains share the numbers and little else. `atlas`, on which the backbone is trained, has places, languages, dates
and rare currencies; `market`, the fine-tuning corpus, has prices in common currencies and quantities in common units.
The backbone is trained on half of these currencies and units, never after a number, and not on the other half.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from functools import cache

from babel import Locale
from babel.numbers import format_decimal, get_currency_name
from babel.units import format_unit
from num2words import num2words

LANGUAGES = ("de", "en", "es", "fr", "it", "ru", "tr", "zh")

MARKET_CURRENCIES = ("EUR USD GBP JPY CNY CHF RUB TRY INR CAD SEK PLN BRL KRW MXN DKK").split()
MARKET_UNITS = (
    "length-kilometer length-meter length-centimeter length-mile length-inch mass-kilogram mass-gram "
    "mass-ton volume-liter volume-milliliter duration-hour duration-minute duration-second duration-week "
    "temperature-celsius area-hectare power-watt speed-kilometer-per-hour"
).split()
SHARED = slice(None, None, 2)
"""The market's currencies and units that occur in the atlas too."""

_ZH_DIGITS = "零一二三四五六七八九"
_ZH_PLACES = ((1000, "千"), (100, "百"), (10, "十"))


def spell_zh(number: int) -> str:
    """Spell a number below 10,000 in Mandarin, which `num2words` does not support."""
    if not 0 <= number < 10_000:
        raise ValueError(f"expected a number from 0 to 9999, got {number}")
    if number < 10:
        return _ZH_DIGITS[number]
    words, rest, gap = "", number, False
    for place, name in _ZH_PLACES:
        digit, rest = divmod(rest, place)
        if digit:
            words += "零" * gap + _ZH_DIGITS[digit] + name
        gap = bool(words) and digit == 0 and rest > 0
    if rest:
        words += "零" * gap + _ZH_DIGITS[rest]
    return words.removeprefix("一") if 10 <= number < 20 else words


def spell(number: int, lang: str) -> str:
    """Spell out a whole number in a language."""
    words = spell_zh(number) if lang == "zh" else num2words(number, lang=lang)
    return words.replace(",", "")


@cache
def _names(lang: str, table: str) -> tuple[str, ...]:
    """List the names in a Babel table that can be spoken as they are written, in a fixed order."""
    names = getattr(Locale.parse(lang), table)
    speakable = re.compile(r"[^\W\d_]+(?:['’ -][^\W\d_]+)*")
    return tuple(sorted({n for n in names.values() if speakable.fullmatch(n) and 3 * (lang != "zh") < len(n) < 26}))


@cache
def _rare_currencies(lang: str) -> tuple[str, ...]:
    """List the currencies outside the market whose names have no digits or brackets."""
    codes = sorted(set(Locale.parse(lang).currencies) - {*MARKET_CURRENCIES, "XXX", "XTS"})
    names = ((code, get_currency_name(code, 7, locale=lang)) for code in codes)
    return tuple(code for code, name in names if not re.search(r"[\d()–/.]", name) and len(name) < 26)


def _join(words: list[str], lang: str) -> str:
    return ("" if lang == "zh" else " ").join(words)


def _places(rng: random.Random, lang: str) -> str:
    return _join(rng.sample(_names(lang, "territories"), rng.choice((1, 2, 2))), lang)


def _tongues(rng: random.Random, lang: str) -> str:
    return _join([rng.choice(_names(lang, "languages")), rng.choice(_names(lang, "territories"))], lang)


def _date(rng: random.Random, lang: str) -> str:
    locale = Locale.parse(lang)
    weekday = rng.choice(list(locale.days["format"]["wide"].values()))
    month = rng.choice(list(locale.months["format"]["wide"].values()))
    day, year = spell(rng.randint(1, 31), lang), spell(rng.randint(1000, 2100), lang)
    words = {
        "zh": [year, "年", month, day, "日", weekday],
        "en": [weekday, month, day, year],
    }.get(lang, [weekday, day, month, year])
    drop = {"zh": 2, "en": 1}.get(lang, 1)
    return _join(words if rng.random() < 0.4 else words[drop:] if lang == "zh" else words[:-drop], lang)


def _count(rng: random.Random, lang: str) -> str:
    top = rng.choice((20, 100, 100, 1000, 9999))
    return _join([spell(rng.randint(0, top), lang) for _ in range(rng.choice((1, 2, 3)) if top <= 100 else 1)], lang)


def _money(rng: random.Random, lang: str, codes: tuple[str, ...]) -> str:
    number = rng.randint(2, 99)
    return _join([spell(number, lang), get_currency_name(rng.choice(codes), number, locale=lang)], lang)


def _rare_money(rng: random.Random, lang: str) -> str:
    return _money(rng, lang, _rare_currencies(lang))


def _price(rng: random.Random, lang: str) -> str:
    return _money(rng, lang, tuple(MARKET_CURRENCIES))


@cache
def _units(lang: str) -> tuple[tuple[str, str], ...]:
    """List (unit, length of its name) for each market unit: the long name, unless Babel lacks it."""
    speakable = re.compile(r"[一-鿿]+" if lang == "zh" else r"[^\W\d_]+( [^\W\d_]+)*")
    names = ((unit, length) for unit in MARKET_UNITS for length in ("short", "long"))
    return tuple(dict(name for name in names if speakable.fullmatch(_unit_text("", 7, *name, lang))).items())


def _unit_text(spelled: str, number: int, unit: str, length: str, lang: str) -> str:
    text = format_unit(number, unit, length=length, locale=lang)
    return re.sub(r"\s+", " ", text.replace(format_decimal(number, locale=lang), spelled)).strip()


def _quantity(rng: random.Random, lang: str) -> str:
    number = rng.randint(2, 99)
    return _unit_text(spell(number, lang), number, *rng.choice(_units(lang)), lang)


def _goods(rng: random.Random, lang: str) -> str:
    number = rng.randint(2, 99)
    if rng.random() < 0.5:
        name = get_currency_name(rng.choice(MARKET_CURRENCIES[SHARED]), number, locale=lang)
    else:
        name = _unit_text("", number, *rng.choice(_units(lang)[SHARED]), lang)
    return _join([name, rng.choice(_names(lang, "territories"))], lang)


def _bargain(rng: random.Random, lang: str) -> str:
    return _join([_quantity(rng, lang), _price(rng, lang)], lang)


Kind = Callable[[random.Random, str], str]
DOMAINS: dict[str, tuple[tuple[Kind, ...], tuple[int, ...]]] = {
    "atlas": ((_places, _tongues, _date, _count, _rare_money, _goods), (22, 12, 18, 20, 14, 14)),
    "market": ((_price, _quantity, _bargain), (25, 25, 50)),
}


def sentences(domain: str, lang: str, seed: int) -> Iterator[str]:
    """Yield distinct sentences of a domain endlessly, in an order fixed by the seed.

    Raises:
        ValueError: the domain or the language is unknown.
    """
    if domain not in DOMAINS or lang not in LANGUAGES:
        raise ValueError(f"expected a domain of {sorted(DOMAINS)} and a language of {LANGUAGES}, got {domain}, {lang}")
    kinds, weights = DOMAINS[domain]
    rng = random.Random(f"{domain} {lang} {seed}")
    seen: set[str] = set()
    while True:
        (kind,) = rng.choices(kinds, weights)
        text = kind(rng, lang).replace("\xa0", " ").replace("’", "'")
        if text not in seen:
            seen.add(text)
            yield text
