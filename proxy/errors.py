"""Everything that can go wrong, by whose fault it is; HTTP statuses live at the doors and nowhere here.

ProxyError
├── InvalidRequest            the client's: `param` names the field
├── Unauthorized              no key, or a wrong one
├── ModelNotFound             no such model, or not for this key
├── NotFound                  no such path            MethodNotAllowed   path, but not this method
├── RequestTooLarge           the body is over `max_body_bytes`
├── RateLimited               ours: over a limit that this proxy keeps
├── ShuttingDown              ours: draining
├── StoreUnavailable          ours: the store did not answer in time; answered by the relay, not by the client
└── VendorError               the vendor's; `delivered`: may it have seen this turn?
    ├── VendorUnavailable     nothing was delivered
    │   └── BotResting        ours: it has kept failing, and is not asked for a while
    ├── VendorAuthFailed      it refuses our credential
    ├── VendorRateLimited     it says 429
    ├── VendorRefused         it refuses this message (4xx)
    ├── VendorTimeout         too slow, or it says so
    ├── VendorFailed          broke off, 5xx, garbled: the message may have arrived
    ├── NoAnswer              it took the message and said nothing
    └── ConversationExpired   it has forgotten the handle; answered by the relay, not by the client

A message never holds a credential or anybody's text: it may reach logs and chat windows.
"""


class ProxyError(Exception):
    """Anything this proxy tells a client. `code` is the machine's word for it, `retry_after` seconds or None.

    `delivered` says whether the vendor may have seen the turn.
    """

    code = "internal_error"
    delivered = False

    def __init__(
        self, message: str, *, delivered: bool | None = None, code: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.retry_after = retry_after
        if delivered is not None:
            self.delivered = delivered


class InvalidRequest(ProxyError):
    """The request cannot be served as it is; `param` is the path of the field at fault, or None."""

    code = "invalid_value"

    def __init__(self, message: str, *, param: str | None = None, code: str = "") -> None:
        super().__init__(message, code=code)
        self.param = param


class Unauthorized(ProxyError):
    code = "invalid_api_key"


class ModelNotFound(ProxyError):
    code = "model_not_found"


class NotFound(ProxyError):
    code = "not_found"


class MethodNotAllowed(ProxyError):
    """`allow` lists the methods that are, as the header has it."""

    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTooLarge(ProxyError):
    code = "request_too_large"


class RateLimited(ProxyError):
    code = "rate_limit_exceeded"


class ShuttingDown(ProxyError):
    code = "shutting_down"


class StoreUnavailable(ProxyError):
    pass


class VendorError(ProxyError):
    """A fault on the vendor's side."""

    code = "vendor_failed"
    delivered = True


class VendorUnavailable(VendorError):
    code = "vendor_unavailable"
    delivered = False


class BotResting(VendorUnavailable):
    pass


class VendorAuthFailed(VendorError):
    code = "vendor_auth_failed"
    delivered = False


class VendorRateLimited(VendorError):
    code = "vendor_rate_limited"
    delivered = False


class VendorRefused(VendorError):
    code = "vendor_refused"
    delivered = False


class VendorTimeout(VendorError):
    code = "vendor_timeout"


class VendorFailed(VendorError):
    code = "vendor_failed"


class NoAnswer(VendorError):
    code = "vendor_no_answer"


class ConversationExpired(VendorError):
    code = "vendor_failed"
    delivered = False
