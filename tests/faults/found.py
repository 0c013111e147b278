"""What hostile input, fuzzing, the tests of safety and reading found: every defect with the test that keeps it mended.

python tests/faults/found.py --record
"""

import ast
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
DEFECTS = {  # one root cause each; the test is `file::function`
    "playlists named as sound opened other files": "test_audio::test_a_playlist_opens_nothing_else",
    "16 channels ended the process": "test_audio::test_more_channels_than_a_frame_has_planes",
    "titles in another encoding": "test_audio::test_titles_in_another_encoding",
    "ALAC in CAF that was cut short was used": "test_audio::test_a_truncated_alac_in_caf_is_refused",
    "archives that promise more than the memory holds": "test_data::test_an_archive_that_promises_more_than_the_memory_holds",
    "gzip bombs as manifests": "test_data::test_a_gzip_bomb_is_refused_before_it_fills_the_memory",
    "manifests of other kinds of JSON": "test_data::test_what_is_not_a_manifest",
    "a run's manifest ran a command": "test_data::test_windows_name_files_and_nothing_else",
    "damaged manifests of runs": "test_data::test_windows_that_are_damaged",
    "folders deeper than Python's calls": "test_data::test_folders_within_folders_without_end",
    "settings that hold one another ten times": "test_teachers_safety::test_settings_that_hold_one_another_ten_times",
    "compressed parts taken for weights": "test_teachers_safety::test_compressed_parts_are_refused",
    "damaged parts of a zip that went unnoticed": "test_teachers_safety::test_a_damaged_part_is_noticed",
    "one number stretched to a model": "test_teachers_safety::test_one_number_stretched_to_a_model_is_refused",
    "weights of other types, and not finite": "test_teachers_safety::test_weights_of_other_types",
    "settings of other types": "test_teachers_safety::test_settings_of_other_types",
    "absurd sizes, brackets without end, links and shards that lead out": "test_teachers::test_what_is_refused_says_why",
    "settings that import code or fetch kernels": "test_teachers::test_only_settings_of_the_model_are_taken",
    "convolutions as no list times a number beyond all sizes": "test_teachers_fairseq::test_nothing_in_the_description_of_convolutions_runs",
    "adapters' settings that import modules": "test_ctc::test_settings_of_adapters_import_no_modules_and_open_no_files",
    "exports that are not what is said of them": "test_export::test_a_model_that_is_not_what_is_said_of_it",
    "weights of exports outside their folder": "test_export::test_weights_outside_the_folder_are_not_read",
    "damaged lines of logs": "test_runs::test_a_damaged_line_of_a_log_is_named",
    "descriptions of runs that are none": "test_runs::test_a_description_that_is_none",
    "journals that lie": "test_stored::test_a_journal_that_lies_is_one_error",
    "journals that lie elsewhere": "test_stored::test_a_journal_that_lies_elsewhere_is_not_followed",
    "values that no setting can have, commands that are lists": "test_config::test_values_that_no_setting_can_have",
    "sound on standard input that is no number": "test_audio::test_live_values_that_are_not_numbers",
    "runs whose files say other things, in reports": "test_report::test_files_that_say_other_things_are_one_error",
    "OpenVINO told its maker": "test_export::test_openvino_tells_its_maker_nothing",
    "passwords in errors and logs": "test_safety::test_no_secret_is_said_of_what_goes_wrong",
    "file names that move the terminal": "test_safety::test_no_name_moves_the_terminal",
    "links in a run that lead out were followed, written to and cleared": "test_runs::test_a_run_whose_files_are_links_that_lead_out_is_not_written_to",
    "a run that another process had just made was replaced": "test_runs::test_a_run_that_another_process_made_meanwhile_stays",
    "exported graphs said where code lay": "test_export::test_no_graph_says_where_code_lay",
    "links in exports were pushed": "test_push::test_a_link_that_leads_out_is_not_sent",
    "steps whose loss is infinite were taken in fp16": "test_half::test_a_loss_that_is_not_finite_changes_nothing",
    "runs that exploded at once went on": "test_training::test_a_run_that_explodes_at_once_is_stopped",
    "runs whose files make no sense": "test_training::test_a_run_whose_files_make_no_sense_is_one_error",
    "lists of embeddings that name other files": "test_embed::test_what_is_done_is_kept",
    "lists of transcripts that say other things": "test_transcribe::test_a_folder_of_transcripts_is_gone_on_with",
    "damaged best weights went into the result": "test_ctc::test_damaged_best_weights_are_noticed",
    "tokens in addresses": "test_safety::test_secrets_are_told_from_what_is_none",
}  # fmt: skip


def missing() -> list[str]:
    """Tests that are named here and do not exist."""
    gone = []
    for test in DEFECTS.values():
        file, _, function = test.partition("::")
        tree = ast.parse((TESTS / f"{file}.py").read_text(encoding="utf-8"))
        if function not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
            gone.append(test)
    return gone


if __name__ == "__main__":
    assert not missing(), missing()
    sys.path.insert(0, str(TESTS / "benchmarks"))
    if "--record" in sys.argv:
        from record import record

        values = {"at least": len(DEFECTS), "defects": list(DEFECTS), "command": "python tests/faults/found.py --record"}  # fmt: skip
        record("reliability", {"what": "defects found by hostile input", **values})
    else:
        print(len(DEFECTS))
