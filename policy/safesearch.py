"""Safe search by CNAME: which names are answered with which other name's records. Data only.

Sources: Google, "Lock SafeSearch for accounts, devices and networks you manage" and "Manage your organization's YouTube
settings"; Microsoft, "Block adult content with SafeSearch" (strict.bing.com); DuckDuckGo help, "Force Safe Search at
network level" (safe.duckduckgo.com).
"""

from __future__ import annotations

from typing import Final

_GOOGLE_COUNTRIES: Final = (  # noqa: SIM905  # two hundred quoted strings are harder to read
    "ad ae al am as at az ba be bf bg bi bj bs bt by ca cat cd cf cg ch ci cl cm cn cv cz de dj dk dm dz ee es fi fm "
    "fr ga ge gg gl gm gp gr gy hn hr ht hu ie im iq is it je jo kg ki kz la li lk lt lu lv md me mg mk ml mn ms mu mv "
    "mw ne nl no nr nu pl pn ps pt ro rs ru rw sc se sh si sk sm sn so sr st td tg tk tl tm tn to tt us vg vu ws "
    "co.ao co.bw co.ck co.cr co.id co.il co.in co.jp co.ke co.kr co.ls co.ma co.mz co.nz co.th co.tz co.ug co.uk co.uz "
    "co.ve co.vi co.za co.zm co.zw com com.af com.ag com.ai com.ar com.au com.bd com.bh com.bn com.bo com.br com.bz "
    "com.co com.cu com.cy com.do com.ec com.eg com.et com.fj com.gh com.gi com.gt com.hk com.jm com.kh com.kw com.lb "
    "com.ly com.mm com.mt com.mx com.my com.na com.nf com.ng com.ni com.np com.om com.pa com.pe com.pg com.ph com.pk "
    "com.pr com.py com.qa com.sa com.sb com.sg com.sl com.sv com.tj com.tr com.tw com.ua com.uy com.vc com.vn"
).split()
"""https://www.google.com/supported_domains"""

# Google answers searches on www only; the bare names redirect there.
_GOOGLE: Final = tuple(f"www.google.{country}".encode() for country in _GOOGLE_COUNTRIES)
_YOUTUBE: Final = (
    b"www.youtube.com", b"m.youtube.com", b"youtubei.googleapis.com", b"youtube.googleapis.com",
    b"www.youtube-nocookie.com",
)  # fmt: skip
_BING: Final = (b"www.bing.com", b"bing.com", b"edgeservices.bing.com", b"cn.bing.com")
_DUCKDUCKGO: Final = (b"duckduckgo.com", b"www.duckduckgo.com", b"start.duckduckgo.com")

PROVIDERS: Final[dict[str, dict[str, tuple[tuple[bytes, ...], str]]]] = {
    "google": {"strict": (_GOOGLE, "forcesafesearch.google.com")},
    "bing": {"strict": (_BING, "strict.bing.com")},
    "youtube": {
        "strict": (_YOUTUBE, "restrict.youtube.com"),
        "moderate": (_YOUTUBE, "restrictmoderate.youtube.com"),
    },
    "duckduckgo": {"strict": (_DUCKDUCKGO, "safe.duckduckgo.com")},
}
"""Provider -> strength -> names, target. The first strength is what is meant where none is said."""
