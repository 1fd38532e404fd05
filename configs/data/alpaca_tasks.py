"""Small instructions in English on sentences of Wikipedia, each with one right answer: the first word, the year, the
language, how many sentences, and so on. The package with the texts is downloaded once, without an account."""

from data_pipeline.questions.config import QuestionsConfig

config = QuestionsConfig(source="wikipedia", form="alpaca", language="en")
