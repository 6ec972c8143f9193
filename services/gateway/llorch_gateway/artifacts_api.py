"""Operations on artifacts. A caller that is bound to its tenant has its own; to the others all are shown."""

from llorch_gateway.failures import unavailable
from llorch_gateway.operations import Answer, Ask, Handlers
from llorch_gateway.payloads import share_full
from llorch_shared.artifacts import Artifacts, UnknownParent
from llorch_shared.bus.port import Bus, Full
from llorch_shared.errors import invalid, not_found
from llorch_shared.guards import NESTING_MAX, nests_deeply
from llorch_shared.object_share import ShareFull
from llorch_shared.wire.artifacts import Artifact

LIMIT_DEFAULT = 50


def handlers(bus: Bus, *, share_bytes: int) -> Handlers:
    artifacts = Artifacts(bus, share_bytes=share_bytes)

    async def create(ask: Ask) -> Answer:
        artifact = ask.body(Artifact)
        if nests_deeply(artifact.content) or nests_deeply(artifact.metadata):
            raise invalid(f"content and metadata are nested at most {NESTING_MAX} deep")
        try:
            ref = await artifacts.create(artifact, ask.call.tenant)
        except UnknownParent as error:
            raise invalid(f"parent: artifact {error} is not known here") from error
        except ValueError as error:
            raise invalid(f"the artifact is too large: {error}", status=413) from error
        except ShareFull as error:
            raise share_full(error) from error
        except Full as error:
            raise unavailable("the object store has no room for it") from error
        return Answer(ref, 201)

    async def find(ask: Ask) -> Answer:
        found = await artifacts.get(ask.given["id"], _seen(ask))
        if found is None:
            raise not_found(f"artifact {ask.given['id']}")
        return Answer(found)

    async def listed(ask: Ask) -> Answer:
        given = ask.given
        page = await artifacts.page(
            _seen(ask),
            kind=given.get("kind"),
            tag=given.get("tag", ""),
            after=int(given.get("cursor", 0)),
            limit=given.get("limit", LIMIT_DEFAULT),
        )
        return Answer(page)

    return {"createArtifact": create, "getArtifact": find, "listArtifacts": listed}


def _seen(ask: Ask) -> str | None:
    """Whose artifacts; None is everybody's."""
    return ask.call.tenant if ask.call.bound else None
