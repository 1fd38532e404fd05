"""Personal data and secrets: what looks like one is replaced by a name for it, and counted.

The placeholders are those of StarCoder (Li et al. 2023, section 4). Patterns are conservative: each repetition in them
is bounded, and what has the form of an address or a number without being one, such as a version, stays.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

_EMAIL = re.compile(r"(?<![\w.+%-])[A-Za-z0-9][\w.+%-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w@-])")
_EXAMPLE_DOMAINS = ("example.com", "example.org", "example.net", ".example", ".invalid", ".test", ".localhost")
# What may not stand before is looked at after the first character, because a search for one of a few is fast.
_IPV4 = re.compile(r"(?s)[0-9](?<![\w.-].)\d{0,2}\.(?:\d{1,3}\.){2}\d{1,3}(?![\w-]|\.\d)")
# What stands before a version, the number of a section or an object identifier: `"version": "1.2.3.4"`.
_NO_ADDRESS = re.compile(r"(?:(?:version|release|section|(?<![a-z])oid)s?[^\w.]{0,6}|\bv|[=<>~]=)\s*$", re.IGNORECASE)
_OBJECT_IDENTIFIER = re.compile(r"1\.3\.6\.1|2\.5\.(?:4|29)\.\d+")  # the Internet's, and those of X.500
_MAYBE_IPV6 = re.compile(":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){1,6}(?![\w:.])")
# International numbers, and those of North America in their usual spelling.
_PHONE = re.compile(
    r"(?s)[+(0-9](?<![\w.+-].)(?:(?<=\+)\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
    r"|(?:(?<=\()|(?:(?<=\+)1|(?<=1))[ .-]\()\d{3}\) ?\d{3}[ .-]\d{4}|(?<=[0-9])\d{2}-\d{3}-\d{4})(?![\w-]|\.\d)"
)
_SECRETS = re.compile(
    r"""(?x)
    (?<![A-Za-z0-9_])(?:
        (?:AKIA|ASIA)[A-Z0-9]{16}                                    # Amazon
      | gh[pousr]_[A-Za-z0-9]{36,255} | github_pat_\w{22,255}        # GitHub
      | glpat-[\w-]{20,64}                                           # GitLab
      | xox[abeprs]-[A-Za-z0-9-]{10,250}                             # Slack
      | AIza[\w-]{35}                                                # Google
      | sk_live_[A-Za-z0-9]{16,128} | rk_live_[A-Za-z0-9]{16,128}    # Stripe
      | sk-[A-Za-z0-9]{40,64} | sk-(?:proj|ant)-[\w-]{32,200}        # OpenAI, Anthropic
      | hf_[A-Za-z0-9]{30,64}                                        # Hugging Face
      | npm_[A-Za-z0-9]{36} | pypi-AgEIcHlwaS5vcmc[\w-]{50,500}      # registries of packages
      | SG\.[\w-]{16,64}\.[\w-]{16,64}                               # SendGrid
      | eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,1000}         # JSON Web Token
    )(?![A-Za-z0-9_])
    """
)
_BEGINNINGS = (
    *("AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "AIza", "sk_live_"),
    *("rk_live_", "sk-", "hf_", "npm_", "pypi-AgE", "SG.", "eyJ"),
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]{2,12} ){0,2}PRIVATE KEY-----[^-]{20,20000}-----END [A-Z ]{0,30}PRIVATE KEY-----"
)


def mask_personal(text: str, counts: Counter[str]) -> str:
    """Replace e-mail addresses, public IP addresses and phone numbers; documentation's own examples stay."""
    if "@" in text:
        text = _replace(_EMAIL, text, "<EMAIL>", "emails", counts, _is_personal_address)
    if text.count(".") >= 3:
        text = _replace(_IPV4, text, "<IP_ADDRESS>", "ip_addresses", counts, _is_public_address)
    if _MAYBE_IPV6.search(text):
        text = _replace(_IPV6, text, "<IP_ADDRESS>", "ip_addresses", counts, _is_public_address)
    return _replace(_PHONE, text, "<PHONE>", "phone_numbers", counts, _has_digits_of_a_phone_number)


def mask_secrets(text: str, counts: Counter[str]) -> str:
    """Replace keys and tokens in the formats of well-known services, and private keys."""
    if any(beginning in text for beginning in _BEGINNINGS):
        text = _replace(_SECRETS, text, "<KEY>", "secrets", counts)
    if "PRIVATE KEY-----" in text:
        text = _replace(_PRIVATE_KEY, text, "<KEY>", "secrets", counts)
    return text


def _replace(
    pattern: re.Pattern[str],
    text: str,
    placeholder: str,
    name: str,
    counts: Counter[str],
    wanted: Callable[[re.Match[str]], bool] = lambda _: True,
) -> str:
    def decide(match: re.Match[str]) -> str:
        if not wanted(match):
            return match[0]
        counts[name] += 1
        return placeholder

    return pattern.sub(decide, text)


def _is_personal_address(match: re.Match[str]) -> bool:
    return not match[0].lower().endswith(_EXAMPLE_DOMAINS)


def _is_public_address(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - 20) : match.start()]
    if _NO_ADDRESS.search(before) or _OBJECT_IDENTIFIER.fullmatch(match[0]):
        return False
    try:
        return ipaddress.ip_address(match[0]).is_global
    except ValueError:
        return False


def _has_digits_of_a_phone_number(match: re.Match[str]) -> bool:
    return 10 <= sum(map(str.isdigit, match[0])) <= 15
