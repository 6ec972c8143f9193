"""Wire types: what crosses the bus or HTTP, as msgspec Structs. Their names, fields and tags are the contract.

Decoders are made once, here or beside the type. A type that the outside writes forbids unknown fields; a type that
only our services write accepts them, so that old and new run side by side.
"""
