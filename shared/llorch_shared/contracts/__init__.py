"""The contracts as files, written from the code: `python -m llorch_shared.contracts [--check] [--out contracts]`.

    openapi/data.yaml, control.yaml   HTTP, from http_api.OPERATIONS
    asyncapi.yaml                     the bus, from subject_table.SUBJECTS
    schemas/<Type>.json               every wire type, JSON Schema 2020-12
    errors.md                         from errors.ERRORS
    metrics.lint.json                 from metrics.METRICS
    config-schema/Config.json         from settings.Settings

Nobody edits those files. Equal code writes equal bytes, so a second run changes nothing and a test compares the two.
"""
