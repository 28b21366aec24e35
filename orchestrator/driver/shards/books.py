"""Books of a shared study: its plan, what MLflow shows, and the report. One driver at a time keeps them.

The first driver takes them, and ships what all drivers do. If it ends or dies, another takes over where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from rich.console import Console

from orchestrator.driver.prepare import Prepared, update_actions
from orchestrator.driver.run import Shipping, conclude, record_upstream_failures, shipping, start_report
from orchestrator.driver.runtime import Runtime
from orchestrator.driver.terminal.summary import Summary
from orchestrator.ledger.derived import compute_state
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.shards.leases import CONCLUSION, BooksLease
from trainables.errors import LeaseError


class Books:
    """Context manager of what this driver does as the keeper of the books, if it is.

    Args:
        prepared: the study.
        tracking_uri: address of MLflow.
        driver: name of this driver.
        retry_failed: whether this driver runs again what had failed before.
    """

    def __init__(self, prepared: Prepared, tracking_uri: str, driver: str, *, retry_failed: bool) -> None:
        own = prepared.ledger
        self._prepared = replace(prepared, ledger=Ledger(own.storage, own.study))  # guarded by the lease of the books
        self._tracking_uri, self._driver, self._retry_failed = tracking_uri, driver, retry_failed
        self._lease_stack, self._shipping_stack = ExitStack(), ExitStack()
        self._lease: BooksLease | None = None
        self._shipping: Shipping | None = None

    def __enter__(self) -> Books:
        return self

    def __exit__(self, *error: Any) -> None:
        with self._lease_stack:
            self._shipping_stack.__exit__(*error)

    @property
    def is_kept(self) -> bool:
        """Whether this driver keeps the books."""
        return self._lease is not None

    def try_to_take(self, lives: Callable[[str], bool], *, is_first: bool = False) -> bool:
        """Acquire the books unless a driver that lives keeps them; return whether this driver keeps them now.

        Args:
            lives: whether the driver of a name lives.
            is_first: whether to write the plan, also over that of an earlier run.

        Raises:
            LeaseError: a driver runs the study alone.
        """
        lease = BooksLease(self._prepared.ledger, driver=self._driver, lives=lives)
        with ExitStack() as taken:
            try:
                lease.check()  # without the lock, which every driver would take every few seconds
                taken.enter_context(lease)
            except LeaseError:
                lease.check_alone()
                return False
            self._begin(is_first)
            self._lease, self._lease_stack = lease, taken.pop_all()
        return True

    def _begin(self, is_first: bool) -> None:
        """Begin the books under their lease."""
        ledger = self._prepared.ledger
        ledger.root.remove(CONCLUSION)
        if is_first or not self._is_planned():
            self._prepared.registration.write(ledger.root)
            ledger.write_plan(self._prepared.plan, self._prepared.about)
        self._prepared = update_actions(self._prepared, ledger.states(), retry_failed=self._retry_failed)
        self._shipping = self._shipping_stack.enter_context(shipping(self._prepared, self._tracking_uri))

    def _is_planned(self) -> bool:
        """Return whether ``plan.json`` has the stages and trials of this plan."""
        ledger = self._prepared.ledger
        if not ledger.root.is_intact("plan.json"):
            return False
        found = ledger.read_plan()
        listed = {each["signature"] for kind in ("stages", "trials") for each in found[kind]}
        return listed == {work.signature for work in self._prepared.plan.works}

    def notify(self, kind: str, signature: str) -> None:
        """Mark a record as changed, for MLflow; does nothing while another driver keeps the books."""
        if self._shipping is not None:
            self._shipping.shipper.notify(kind, signature)

    def leave(self, running: Collection[str]) -> None:
        """Give the books back while other drivers go on with these stages and trials."""
        if self._shipping is not None:
            self._shipping.left_open = running
        self._close()

    def _close(self) -> None:
        with self._lease_stack:
            self._shipping_stack.close()
        self._lease = self._shipping = None

    def conclude(self, runtime: Runtime, console: Console) -> Summary:
        """Close the books: ship the last records, write the report, and note that this is done; return the summary."""
        assert self._lease is not None
        ledger = self._prepared.ledger
        self._prepared = update_actions(self._prepared, ledger.states(), retry_failed=False)
        record_upstream_failures(self._prepared)
        get_report = start_report(self._prepared, runtime, self._lease)
        self._shipping_stack.close()  # once the last records are shipped
        summary = conclude(self._prepared, self._shipping, get_report(), console)
        state = compute_state(ledger.read_plan(), ledger.states())
        ledger.root.write_json(CONCLUSION, {"state": state, "unshipped": summary.unshipped})
        self._close()
        return summary
