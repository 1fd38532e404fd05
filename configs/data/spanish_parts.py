"""Four parts of Spanish text, about 300 KB each, for training in stages: people, places, history and arts. The package
with the texts is downloaded once, without an account."""

from data_pipeline.questions.config import QuestionsConfig

config = QuestionsConfig(source="wikipedia", form="text", language="es")
