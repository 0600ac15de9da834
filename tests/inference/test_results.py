from espnet_lole.inference.results import Segment, srt, vtt

SEGMENTS = [
    Segment(0.0, 1.5, "a < b & c", "de"),
    Segment(1.5, 2.0, "", "de"),
    Segment(3661.0625, 3662.0, "1 --> 2", "de"),
]


def test_subtitles_have_a_cue_for_each_segment_with_text():
    assert srt(SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:01,500\na < b & c\n\n2\n01:01:01,062 --> 01:01:02,000\n1 -> 2\n\n"
    )
    assert vtt(SEGMENTS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\na &lt; b &amp; c\n\n01:01:01.062 --> 01:01:02.000\n1 --&gt; 2\n\n"
    )


def test_no_segments_make_empty_subtitles():
    assert srt([]) == "" and vtt([]) == "WEBVTT\n\n"
