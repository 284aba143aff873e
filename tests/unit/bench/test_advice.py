from __future__ import annotations

from qwen_edge.bench.advice import choose


def test_the_fastest_acceptable_file_wins(make_candidate):
    advice = choose([make_candidate("Q8_0", 6, 48, kld=0.0003), make_candidate("Q4_0", 4, 70, kld=0.03)])
    assert advice.choice.label == "Q4_0"
    assert advice.reason == "the fastest decode, 70 tokens/s (KLD 0.0300, same top token 92.0%)"


def test_speed_does_not_buy_bad_answers(make_candidate):
    by_kld = choose([make_candidate("Q4_K_M", 5, 40), make_candidate("Q2_K", 3, 90, kld=0.3)])
    assert by_kld.choice.label == "Q4_K_M"
    assert by_kld.reason.startswith("the fastest decode of acceptable quality, 40 tokens/s")
    assert by_kld.reason.endswith("; left out for quality: Q2_K (KLD 0.3000, same top token 92.0%)")
    by_top = choose([make_candidate("Q4_K_M", 5, 40), make_candidate("Q2_K", 3, 90, same_top=0.8)])
    assert by_top.choice.label == "Q4_K_M"


def test_a_tie_goes_to_the_better_quality(make_candidate):
    advice = choose([make_candidate("Q4_0", 4, 70, kld=0.03), make_candidate("Q4_K_M", 4.2, 68, kld=0.01)])
    assert advice.choice.label == "Q4_K_M"
    assert "a tie within the noise with Q4_0 (70), and of these it is the best quality" in advice.reason


def test_the_noise_of_the_repetitions_widens_a_tie(make_candidate):
    slow, fast = (50.0, 60.0, 70.0), (62.0, 72.0, 82.0)
    candidates = [make_candidate("Q8_0", 6, slow, kld=0.0003), make_candidate("Q4_0", 4, fast, kld=0.03)]
    assert choose(candidates).choice.label == "Q8_0"
    quiet = [make_candidate("Q8_0", 6, 60.0, kld=0.0003), make_candidate("Q4_0", 4, 72.0, kld=0.03)]
    assert choose(quiet).choice.label == "Q4_0"


def test_of_equal_quality_and_speed_the_smaller_wins(make_candidate):
    reference = make_candidate("BF16", 12, 50, kld=0.0, same_top=1.0, is_reference=True)
    advice = choose([reference, make_candidate("Q8_0", 6, 50, kld=0.0003)])
    assert advice.choice.label == "Q8_0"
    assert "the smallest of equal quality" in advice.reason


def test_the_reference_may_win_and_is_called_so(make_candidate):
    reference = make_candidate("Q4_K_M", 4, 80, kld=0.0, same_top=1.0, is_reference=True)
    advice = choose([reference, make_candidate("Q8_0", 6, 50, kld=0.0003)])
    assert advice.choice is reference
    assert "it is the reference" in advice.reason


def test_without_an_acceptable_file_the_nearest_is_named_with_its_number(make_candidate):
    advice = choose([make_candidate("Q2_K", 3, 90, kld=0.4), make_candidate("Q3_K_M", 4, 80, kld=0.2)])
    assert advice.choice.label == "Q3_K_M"
    assert "0.200" in advice.reason


def test_the_choice_does_not_depend_on_the_order(make_candidate):
    candidates = [
        make_candidate("Q8_0", 6, 69, kld=0.0003),
        make_candidate("Q4_0", 4, 70, kld=0.03),
        make_candidate("Q4_K_M", 4.2, 68, kld=0.01),
    ]
    assert choose(candidates).choice is choose(candidates[::-1]).choice
