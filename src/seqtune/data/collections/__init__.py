"""Collections of tasks that others wrote, each format with its reader. What cannot be read is named, with the reason.

In goes a file, a folder or a tar archive. Out come the keys of task bundles (`seqtune.data.bundles`), by name.

| format | a file of it | rows |
|---|---|---|
| promptsource | YAML with `dataset` and `templates` in Jinja | of the data set that it names: give a table |
| FLAN's template list | JSON: task -> pairs of texts with {columns} | likewise |
| Natural Instructions | JSON with `Definition` and `Instances` | in the file itself |
| lm-evaluation-harness | YAML with `doc_to_text`, where it needs no Python code | its data files, if it names some |
"""

from seqtune.rooms import hands_on

__all__, __getattr__ = hands_on(
    __name__, {"documents": "is_json_object", "reading": "Collection is_collection read_collection"}
)
