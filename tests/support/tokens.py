"""Token files for tests: `NAME-token` is the token of the entry NAME."""

from pathlib import Path

from llorch_shared.auth import digest


def write_tokens(path: Path, more: str = "", **tenants: str) -> None:
    """One entry for each `name=tenant`, with `more` in each."""
    tables = (
        f'[[tokens]]\nname = "{name}"\nsha256 = "{digest(f"{name}-token").hex()}"\ntenant = "{tenant}"\n{more}\n'
        for name, tenant in tenants.items()
    )
    path.touch(mode=0o600)
    path.write_text("".join(tables))
    path.chmod(0o600)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}
