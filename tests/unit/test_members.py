"""Who belongs to the cluster, peer by peer. That it follows from the verdicts is for test_desired.py and test_effects.py."""

from __future__ import annotations

import pytest
from pynet.core.addresses import parse_address, parse_prefix
from pynet.core.claims import Claim
from pynet.core.members import Members

CIDR, HOP, OTHER_HOP = parse_prefix("10.244.1.0/24"), parse_address("10.99.0.2"), parse_address("10.99.0.3")
CLAIM = Claim(CIDR, HOP)


@pytest.mark.parametrize("on_link", [True, False])
def test_a_peer_that_is_gone_leaves_nothing_behind(on_link):
    members = Members()
    members.note("a", None, CLAIM, on_link=on_link)
    members.note("a", CLAIM, None, on_link=False)
    assert vars(members) == vars(Members())


def test_what_two_peers_have_stays_until_both_are_gone():
    members = Members()
    members.note("a", None, CLAIM, on_link=True)
    members.note("b", None, CLAIM, on_link=True)
    members.note("a", CLAIM, None, on_link=False)
    assert (set(members.pods), set(members.nodes)) == ({CIDR}, {HOP})
    members.note("b", CLAIM, None, on_link=False)
    assert vars(members) == vars(Members())


def test_an_address_is_no_more_than_a_claim_until_it_was_on_link_and_another_one_is_one_again():
    members = Members()
    members.note("a", None, CLAIM, on_link=False)
    assert (set(members.pods), set(members.nodes)) == ({CIDR}, set())
    members.note("a", CLAIM, CLAIM, on_link=True)
    assert set(members.nodes) == {HOP}
    members.note("a", CLAIM, CLAIM, on_link=False)
    assert set(members.nodes) == {HOP}, "an outage"
    moved = Claim(CIDR, OTHER_HOP)
    members.note("a", CLAIM, moved, on_link=False)
    assert (set(members.pods), set(members.nodes)) == ({CIDR}, set())
