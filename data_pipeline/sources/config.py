"""The kinds of sources: a dataclass each, read by the module that `data_pipeline/collect.py` names for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PackagedWikipedia:
    """Lead sections of English, Spanish or French Wikipedia's vital articles, from a small package: no account."""

    name: str = "wikipedia"
    """Name of the source in reports and in the manifest."""
    licence: str = "CC-BY-SA-4.0"
    """Licence of the text, kept with every document."""
    language: Literal["en", "es", "fr"] = "en"
    """Language edition."""
    max_bytes: int | None = None
    """Take a sample near this many bytes, drawn evenly over all articles; without it, all."""


@dataclass(frozen=True)
class PythonCode:
    """Python files of the running interpreter: its standard library and the installed distributions."""

    name: str = "python"
    """Name of the source in reports and in the manifest."""
    licence: str = "per-file"
    """Shown for the whole source; every document has the licence that its distribution declares."""
    max_bytes: int = 5_500_000
    """Stop near this many bytes; the sample is drawn evenly over all files."""
    max_package_share: float = 0.1
    """No one distribution gives more than this fraction of `max_bytes`."""
    max_file_bytes: int = 65_536
    """Larger files are passed over: most of them are tables or generated."""
    packages: tuple[str, ...] = ()
    """Distributions to read beside the standard library; empty means every installed one."""
    refused_licences: tuple[str, ...] = ("GPL", "Proprietary", "Non-Commercial")
    """A distribution whose licence contains one of these words is set aside; so is one that declares none."""


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hugging Face hub, streamed, or a local directory of .jsonl or .parquet files."""

    path: str
    """Hub id such as `wikimedia/wikipedia`, or a local directory."""
    name: str
    """Name of the source in reports and in the manifest."""
    licence: str
    """Licence of the text; documents take their own from `licence_column` where it is set."""
    kind: Literal["prose", "code", "wiki"] = "prose"
    """Which cleaning and filters apply: `wiki` is prose with holes where templates were dropped."""
    subset: str | None = None
    """Configuration of the dataset, such as `20231101.en`."""
    split: str = "train"
    """Split of the dataset."""
    revision: str | None = None
    """Commit or tag; name one, so that the same command gives the same data next year."""
    text_column: str = "text"
    """Column that holds the text."""
    title_column: str | None = None
    """Column with a title, which becomes the first line of the document."""
    origin_column: str | None = None
    """Column with the URL or path of the document."""
    licence_column: str | None = None
    """Column with the licence of each document."""
    accepted_licences: tuple[str, ...] = ()
    """With `licence_column`: only these are taken; empty takes all."""
    max_bytes: int = 100_000_000
    """Stop after this many bytes of text."""


@dataclass(frozen=True)
class TextFiles:
    """Your own text: plain, Markdown, HTML and source files, .jsonl, .csv, .tsv and .parquet; .gz, .bz2, .xz, .zst."""

    patterns: tuple[str, ...]
    """File names or glob patterns, `**` crosses directories; or URLs that fsspec knows, such as s3://bucket/*.gz."""
    name: str = "files"
    """Name of the source in reports and in the manifest."""
    licence: str = "unspecified"
    """Licence of the text, kept with every document."""
    text_field: str = "text"
    """Field of a JSON line, or column of a table, that holds the text, or a list of texts, each a document."""


_REFUSED = ("GPL", "SSPL", "BUSL", "Proprietary", "Non-Commercial", "Noncommercial", "-NC", "unknown")


@dataclass(frozen=True)
class GitRepositories:
    """Source code and documentation of Git repositories, each at one revision, fetched without its history."""

    repositories: tuple[str, ...]
    """Each as `URL@revision` or `path@revision`; the revision is a full commit, a tag or a branch."""
    name: str = "repositories"
    """Name of the source in reports and in the manifest."""
    licence: str = "per-file"
    """Shown for the whole source; every document has the licence of its header, or of the nearest licence file."""
    suffixes: tuple[str, ...] = ()
    """Take only files with these, such as `.py` and `.md`; empty takes all known code, .md, .rst and .txt."""
    refused_licences: tuple[str, ...] = _REFUSED
    """A file whose licence contains one of these words is set aside; "unknown" stands for one that names none."""


@dataclass(frozen=True)
class PyPIPackages:
    """Source code and documentation in the wheels of packages, opened as archives: nothing is installed or run."""

    requirements: tuple[str, ...]
    """Each as `name==version`. The wheel is the one that pip chooses for the running interpreter."""
    name: str = "packages"
    """Name of the source in reports and in the manifest."""
    licence: str = "per-file"
    """Shown for the whole source; every document has the licence of its header, or that its package declares."""
    suffixes: tuple[str, ...] = ()
    """Take only files with these, such as `.py` and `.md`; empty takes all known code, .md, .rst and .txt."""
    refused_licences: tuple[str, ...] = _REFUSED
    """A file whose licence contains one of these words is set aside; "unknown" stands for one that names none."""


@dataclass(frozen=True)
class WikipediaDump:
    """Articles of a dump of Wikipedia or another MediaWiki wiki (pages-articles.xml): plain, .gz, .bz2, .xz or .zst."""

    patterns: tuple[str, ...]
    """File names or glob patterns, or URLs that fsspec knows; the files of a dump in parts are read in parallel."""
    name: str = "wikipedia"
    """Name of the source in reports and in the manifest."""
    licence: str = "CC-BY-SA-4.0"
    """Licence of the text, kept with every document."""
    namespaces: tuple[int, ...] = (0,)
    """Numbers of the namespaces to read; 0 holds the articles."""


@dataclass(frozen=True)
class WebPages:
    """Web pages by their addresses, fetched once, politely, and kept in `downloads/web/`."""

    urls: str | tuple[str, ...]
    """A file with one http or https URL a line (`#` begins a comment), or the URLs themselves."""
    name: str = "web"
    """Name of the source in reports and in the manifest."""
    licence: str = "unspecified"
    """Licence of the text, kept with every document."""
    contact: str = ""
    """Your e-mail address or page, sent with every request, so that a site can reach you; many ask for one."""
    delay: float = 1.0
    """Pause between two requests to one host, in seconds; a longer Crawl-delay in its robots.txt wins."""
    timeout: float = 30.0
    """Time for a connection, for a page to begin, and for the whole of it, in seconds each."""
    max_bytes: int = 4_000_000
    """A larger page is set aside, in bytes."""
    refresh: bool = False
    """Fetch pages again that are there already, and those that failed for good."""


@dataclass(frozen=True)
class WarcFiles:
    """Pages from web archives: .warc, .warc.gz and .warc.zst, and the plain text of .wet files."""

    patterns: tuple[str, ...]
    """File names or glob patterns, `**` crosses directories; or URLs that fsspec knows, such as s3://bucket/*.gz."""
    name: str = "warc"
    """Name of the source in reports and in the manifest."""
    licence: str = "unspecified"
    """Licence of the text, kept with every document."""


@dataclass(frozen=True)
class DebianPackages:
    """Documentation of Debian packages: manuals, help and manual pages; downloaded with apt-get, read as data."""

    packages: tuple[str, ...]
    """Packages as `name=version`, or as `name` for the version that apt would take."""
    name: str = "debian"
    """Name of the source in reports and in the manifest."""
    licence: str = "per-package"
    """Shown for the whole source; every document has the licences of its package's copyright file."""
    languages: tuple[str, ...] = ()
    """Codes such as `en`: pages whose path names another language are left out; empty takes all."""


Source = (
    PackagedWikipedia
    | PythonCode
    | HubDataset
    | TextFiles
    | GitRepositories
    | PyPIPackages
    | WikipediaDump
    | WebPages
    | WarcFiles
    | DebianPackages
)
