"""How provisioning says no: one exception for people, one kind of it for broken trust."""

from llorch_shared.errors import ErrorCode


class Failure(Exception):
    """It cannot be done. The message says why, `hint` what to do about it, `code` the kind where there is one."""

    code: str = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def sentence(self) -> str:
        """Reason and remedy in one line."""
        return f"{self}. {self.hint}" if self.hint else str(self)


class Untrusted(Failure):
    """An artifact is not what was promised. Always fatal (ORCH-3037); what was fetched is thrown away."""

    code = ErrorCode.UNTRUSTED_ARTIFACT.value

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{ErrorCode.UNTRUSTED_ARTIFACT}: {message}", hint)
