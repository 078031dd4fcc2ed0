"""A logger that wants a key, as Comet's and Neptune's do."""

from typing import Any

from lightning.pytorch.loggers import CSVLogger


class SecretiveLogger(CSVLogger):
    """Lightning's, which would log to a service."""

    def __init__(self, save_dir: str, api_key: str | None = None, **service: Any) -> None:
        super().__init__(save_dir)
        self.api_key, self.service = api_key, service
        SecretiveLogger.given.append((api_key, service))

    given: list[Any] = []  # noqa: RUF012
