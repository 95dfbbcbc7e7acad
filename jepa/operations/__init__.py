"""What a model does while it runs, counted."""

from jepa.operations.ledger import PARTS, OperationLedger, PartCount

__all__ = ["PARTS", "OperationLedger", "PartCount"]
