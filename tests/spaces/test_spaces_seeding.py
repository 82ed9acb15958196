"""Seeds that are named by their purpose."""

import hashlib

import numpy as np
import pytest

from spaces.seeding import derive_seed, generator, stable_hash


def test_a_seed_is_the_sha256_of_its_purpose_as_json() -> None:
    expected = hashlib.sha256(b'[7,"curriculum",3]').hexdigest()
    assert stable_hash([7, "curriculum", 3]) == expected
    assert derive_seed(7, "curriculum", 3) == int(expected[:8], 16)
    assert 0 <= derive_seed("anything") < 2**32


def test_the_order_of_names_does_not_matter_and_every_value_does() -> None:
    assert stable_hash({"a": 1, "b": 2}) == stable_hash({"b": 2, "a": 1})
    parts = [(), (0,), (1,), ("1",), (1, 2), (12,), (2, 1), (1.5,), (None,), (True,)]
    assert len({derive_seed(*p) for p in parts}) == len(parts)


def test_numpys_numbers_count_as_pythons() -> None:
    assert derive_seed(np.int64(7), np.float64(0.5)) == derive_seed(7, 0.5)


def test_generators_of_two_purposes_are_independent() -> None:
    first, again, other = (generator(0, purpose).random(2000) for purpose in ("a", "a", "b"))
    assert (first == again).all()
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.1


def test_what_has_no_stable_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object is not JSON-able"):
        derive_seed(object())
