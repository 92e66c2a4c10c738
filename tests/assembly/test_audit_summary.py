from __future__ import annotations

import pytest

from nlt_trainer.assembly.scoring import cut_line


@pytest.mark.parametrize(("share", "said"), [(0.0, False), (0.19, False), (0.2, True), (0.96, True)])
def test_the_audit_says_what_to_do_about_documents_that_were_cut(share: float, said: bool) -> None:
    """Against the share, the limit and the remedy by name."""
    line = cut_line(truncated_documents=share, scorer={"max_document_tokens": 128}, queries=8)
    assert bool(line) == said
    if said:
        assert f"{share:.0%} of the documents" in line
        assert "max_document_tokens (128 now)" in line
