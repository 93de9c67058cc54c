"""Equality of records."""

from lora.records.record import RunRecord


def equal_science(one: RunRecord, other: RunRecord) -> bool:
    """Whether two records hold the same run with the same outcome. Timing, paths and machine may differ."""

    def science(record: RunRecord) -> tuple:
        config = {key: value for key, value in record.config.items() if key != "runtime"}
        threads = record.config["runtime"]["threads"]
        return record.run_id, record.status, config, threads, record.params, record.epochs, record.selected

    return science(one) == science(other)
