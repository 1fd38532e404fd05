"""What the OpenAPI description promises, tried with generated requests: right ones, and wrong ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from serving_fixtures import Running, load, make_chat_run, running

from serving.options import ServerOptions

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    loaded = load(make_chat_run(tmp_path_factory.mktemp("schema") / "tiny", context_length=64))
    with running(loaded, ServerOptions(slots=8, max_tokens=4)) as server:
        yield server


@pytest.fixture(scope="module")
def described(server: Running) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_answers_are_as_described(described: schemathesis.BaseSchema, mode: GenerationMode) -> None:
    for found in described.get_all_operations():
        operation = found.ok()
        if mode == GenerationMode.NEGATIVE and operation.method != "post":
            continue  # nothing in it can be wrong

        @given(operation.as_strategy(generation_mode=mode))
        @settings(max_examples=15, suppress_health_check=list(HealthCheck))
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CHECKS)

        check()


def test_everything_is_described(described: schemathesis.BaseSchema) -> None:
    paths = described.raw_schema["paths"]
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize", "/metrics", "/ready"} <= set(paths)
    for path, methods in paths.items():
        for operation in methods.values():
            assert "422" not in operation["responses"], path  # errors here have another form
