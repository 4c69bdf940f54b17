"""Replace secrets in what is written: journals, logs, manifests, exported cards."""

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"
_SECRET_KEY = re.compile(r"(^|[_.\-])(token|api[_\-]?key|password|passwd|secret|credentials?)$", re.IGNORECASE)
# Keys of tokenizers that look like a secret's: `pad_token`.
_SPECIAL_TOKEN = re.compile(r"(bos|eos|eot|pad|unk|sep|cls|mask|start|end|turn|stop|special)_token$", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{20,})|(?<=Bearer )\S{2,}|(?<=://)[^/\s@]+:[^/\s@]+(?=@)"
)
# What signs an address for those who have it: of S3, Google, Azure and CloudFront, and plain tokens.
_SIGNED = re.compile(
    r"([?&;](?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|sig|policy|key-pair-id|awsaccesskeyid"
    r"|(?:access_?|auth_?|private_?)?token|api_?key|key|password|secret)=)[^&;#\s\"'<>]+",
    re.IGNORECASE,
)


def redact(value: Any, key: str = "") -> Any:
    """Return `value` with secrets replaced: values whose key names a secret, and texts that look like one.

    A single letter is no secret: under the key `token` it is a token of a text.
    """
    if isinstance(value, Mapping):
        return {name: redact(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner, key) for inner in value]
    if isinstance(value, str):
        secret = _SECRET_KEY.search(key) and not _SPECIAL_TOKEN.search(key)
        return REDACTED if len(value) > 1 and secret else redact_addresses(_SECRET_TEXT.sub(REDACTED, value))
    return value


def redact_addresses(value: Any) -> Any:
    """Return `value` with the secret parts of its http(s) addresses replaced."""
    if isinstance(value, Mapping):
        return {name: redact_addresses(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_addresses(inner) for inner in value]
    if isinstance(value, str) and "://" in value:
        return _SIGNED.sub(rf"\1{REDACTED}", _SECRET_TEXT.sub(REDACTED, value))
    return value
