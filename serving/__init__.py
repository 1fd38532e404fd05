"""An HTTP server for a run, with the API that OpenAI's clients speak."""

from serving.app import make_app
from serving.options import ServerOptions
from serving.service import Service

__all__ = ["ServerOptions", "Service", "make_app"]
