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
    "decoded copies of other sound": "test_data::test_a_copy_of_other_sound_is_made_again",
    "runs without a window to train on": "test_data::test_a_manifest_without_a_window_to_train_on",
    "windows of a run that came and went": "test_training::test_windows_that_came_and_went_are_noticed",
    "damaged arrays among embeddings": "test_embed::test_what_is_no_longer_the_array_that_was_written_is_done_again",
    "lists of embeddings of other bytes, and of links without an end": "test_embed::test_a_list_of_other_bytes_or_of_links_without_an_end",
    "folders of results that are links were written to": "test_embed::test_folders_of_results_that_are_links_are_not_written_to",
    "what `units` had begun, behind a link, was written to": "test_units::test_what_is_begun_is_not_written_to_where_a_link_leads_out",
    "transcripts that were gone were not written again": "test_cli_recognition::test_a_transcript_that_is_gone_is_written_again",
    "a run's manifest ran a command in its report": "test_report::test_no_report_runs_what_a_manifest_says",
    "gzip bombs in reports": "test_report::test_a_manifest_that_unpacks_to_gigabytes_is_not_read",
    "pipes and devices in runs": "test_runs::test_pipes_and_devices_in_a_run_are_not_read",
    "checkpoints of links that lead out": "test_runs::test_a_checkpoint_of_links_that_lead_out_is_none",
    "changed lines of journals": "test_stored::test_a_line_that_is_not_as_it_was_written_counts_for_nothing",
    "journals that are folders": "test_stored::test_a_journal_that_is_a_folder_is_written_anew",
    "locks that cannot be opened": "test_stored::test_a_lock_that_cannot_be_opened_is_one_error",
    "checkpoints that are not finite": "test_training::test_a_checkpoint_that_is_not_finite_is_not_gone_on_with",
    "folders in the place of a run's files": "test_training::test_a_folder_in_the_place_of_a_file_of_a_run",
    "logs that say other things": "test_training::test_a_log_that_says_other_things_is_noticed_before_the_first_step",
    "descriptions without what is needed": "test_training::test_a_description_without_what_is_needed_is_noticed_before_the_first_step",
    "plans that no run can have": "test_plan::test_a_plan_that_no_run_can_have",
    "recipes without the layers that were chosen": "test_training::test_a_recipe_without_the_layers_that_were_chosen",
    "students of a run whose settings are none": "test_training::test_a_student_whose_settings_are_none",
    "runs whose files say other things, inspected": "test_training::test_what_is_inspected_of_a_run_makes_sense_or_is_one_error",
    "another tokenizer in a run": "test_ctc::test_a_run_with_another_tokenizer_is_not_gone_on_with",
    "validations of other things, on cards": "test_cards::test_validations_of_other_things_are_not_compared",
    "what processes on other machines were writing was removed": "test_leftovers::test_what_a_process_on_another_machine_writes_stays",
    "leftovers whose process number was given anew stayed": "test_leftovers::test_a_number_that_was_given_anew",
    "names that stand for a folder itself, and numbers that no process has, among leftovers": "test_leftovers::test_what_was_half_written_goes",
    "every second step left out, without end": "test_loop::test_too_many_in_all_name_steps_and_clips",
    "fp16 overflowed in every second step, without end": "test_half::test_overflows_without_end_are_an_error",
    "steps left out before a run was stopped did not count": "test_training::test_stopped_and_resumed_too_many_broken_steps_end_at_the_same_one",
    "clips of a process in which nothing went wrong were named": "test_ranks::test_clips_are_those_of_the_process_in_which_it_went_wrong",
    "a line of a store's journal with a number without end": "test_stored::test_a_damaged_journal_costs_its_lines_only",
    "what an export says, outside its folder": "test_export::test_what_an_export_says_is_not_read_outside_its_folder",
    "settings of a width that fills the memory": "test_teachers::test_a_width_that_would_fill_the_memory_is_refused",
    "a look for each suffix, for each name of a table that is not there": "test_transcripts::test_names_of_files_that_are_not_there_cost_little",
    "a tokenizer whose space is no text": "test_tokenizers::test_what_is_not_a_tokenizer[a space that is no text]",
    "a tokenizer whose unknown token has no number": "test_tokenizers::test_what_is_not_a_tokenizer[no unknown]",
    "half a sign in the id of a recording": "test_data::test_half_a_sign_in_a_name_or_a_reason_can_be_listed",
    "a resumed run with a student of a billion layers": "test_training::test_a_student_of_a_size_that_no_model_has",
    "moments that are not whole, their digest right": "test_training::test_moments_of_weights_that_are_not_whole",
    "a recipe of a run that is a link to itself": "test_training::test_a_recipe_that_is_a_link_to_itself",
    "a window of 10^30 steps in a report": "test_report::test_windows_of_absurd_lengths_are_counted_too",
    "a description of stored targets read through a link": "test_stored::test_a_description_that_lies_elsewhere_is_not_read",
    "data2vec of a billion convolutions for positions": "test_teachers::test_what_is_refused_says_why[more positions than anybody has]",
    "SPHERE that was cut short was used": "test_audio::test_a_truncated_sphere_file_is_refused",
    "windows whose sound is a number, or has a name too long": "test_data::test_windows_whose_file_has_no_name_that_can_be",
    "a decoded copy that only FFmpeg can read": "test_data::test_a_copy_that_only_ffmpeg_can_read_is_made_again",
}  # fmt: skip


def missing() -> list[str]:
    """Tests that are named here and do not exist."""
    gone = []
    for test in DEFECTS.values():
        file, _, name = test.removesuffix("]").partition("::")
        function, _, case = name.partition("[")
        text = (TESTS / f"{file}.py").read_text(encoding="utf-8")
        tree = ast.parse(text)
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if function not in functions or (case and f'"{case}": (' not in text):
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
