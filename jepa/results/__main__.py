"""``python -m jepa.results``: the JSON schema of the results documents, by kind."""

from __future__ import annotations

import json

from jepa.results import AnswerResults, Document, StreamResults


def schemas(*kinds: type[Document]) -> str:
    """The JSON schema of each kind of document, as one JSON object."""
    found = {str(kind.model_fields["kind"].default): kind.model_json_schema() for kind in kinds}
    return json.dumps(found, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    print(schemas(StreamResults, AnswerResults))
