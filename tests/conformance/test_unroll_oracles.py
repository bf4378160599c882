from unroll_oracles import rows


def test_unrolling_and_source_agree_with_autograd():
    found = rows()
    assert len(found) == 4 and all(row["pass"] for row in found), found
    assert all(row["rank_correlation"] > 0.99 for row in found)
