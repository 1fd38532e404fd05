"""Spanish verses and their English translations, five whole books held out; from three packages of Debian."""

from data_pipeline.translation.config import TranslationConfig

config = TranslationConfig()
