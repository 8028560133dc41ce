"""How a hub is asked for anything: with the library's token, without its telemetry, and never compressed."""


def headers(part: str = "") -> dict[str, str]:
    """Return what goes with a request; `part` is a range such as `bytes=0-7`.

    Not the library's own headers: its user agent tells what is installed here. Compressed, no range would fit.
    """
    from huggingface_hub import constants, get_token

    sent = {"user-agent": "requant", "accept-encoding": "identity"} | ({"range": part} if part else {})
    if not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and (token := get_token()):
        sent["authorization"] = f"Bearer {token}"
    return sent


def is_of_the_network(error: Exception) -> bool:
    """Say whether waiting may mend an error: httpx's in 1.x of the library, httpx2's in 2.x, no class in common."""
    return type(error).__module__.startswith("httpx")
