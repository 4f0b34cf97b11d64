"""Names from untrusted files are shortened in every message."""

from __future__ import annotations

import pickle

from onnx_gradcam.errors import ExplainError, ModelError, ServerError


def test_long_names_are_shortened_and_the_remedy_stays():
    message = str(ModelError(f"there is no layer '{'a' * 10**6}'; choose another with --layer"))
    assert len(message) < 400
    assert message.startswith("there is no layer 'aaa")
    assert message.endswith("aaa'; choose another with --layer")


def test_long_messages_of_short_words_are_shortened_too():
    message = str(ExplainError("ab " * 10**5 + "; remedy"))
    assert len(message) < 2100
    assert message.endswith("; remedy")


def test_ordinary_messages_are_kept_and_survive_another_process():
    error = ServerError("a path " + "x" * 250, 413)
    assert str(error) == "a path " + "x" * 250
    assert str(pickle.loads(pickle.dumps(ModelError("m")))) == "m"  # noqa: S301
