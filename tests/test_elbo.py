from toy import terms_of


def test_a_window_is_skipped_if_it_does_not_pay_and_q_continues():
    assert terms_of([0, -5, 90, 80], [0.1, 0.2, 0.6, 0.1]).skipped.tolist() == [[True, False, False]]
    assert terms_of([0, 50, 40, 90], [0.1, 0.1, 0.2, 0.6]).skipped.tolist() == [[False, True, False]]
    assert terms_of([0, -5, 90, 80], [0.1, 0.5, 0.4, 0.0]).skipped.tolist() == [[False, False, False]]  # q stops
    assert terms_of([0, 50, 90, 80], [0.0, 0.0, 0.0, 1.0]).skipped.tolist() == [[False, False, False]]
