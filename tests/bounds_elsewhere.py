"""Bounds that `tests/test_bounds.py` does not try itself: which tests do; and what is named as a bound and is none."""

from __future__ import annotations

from collections.abc import Collection, Mapping

ELSEWHERE: Mapping[str, Mapping[str, Collection[str]]] = {
    "session/test_hostile_clients.py": {
        "commands_held_while_a_device_gets_quiet_have_a_size_and_a_number": [
            "vfio_user.server.session:MAX_BACKLOG",
            "vfio_user.server.session:MAX_BACKLOG_SIZE",
        ],
    },
    "session/test_planned_work.py": {
        "what_is_cancelled_is_not_done_and_does_not_pile_up": ["userdev.serving.worker:FORGOTTEN"],
    },
    "test_client_exchange.py": {
        "a_message_of_the_server_has_the_same_bound_on_either_socket": ["vfio_user.client.channel:MAX_RECEIVED"],
        "a_server_that_takes_no_answers_is_not_asked_for_more_questions": ["vfio_user.client.channel:MAX_OWED"],
    },
    "test_control_protocol.py": {
        "a_line_without_end_is_refused_and_the_connection_ends": [
            "userdev.interposer.control.server:MAX_LINE",
            "userdev_servers.control:MAX_LINE",
        ],
        "one_controller_too_many_is_told_so": ["userdev.interposer.control.server:MAX_CONNECTIONS"],
        "what_is_wrong_with_a_line_is_said_in_a_sentence_of_ours": ["userdev.control.envelope:MAX_DIGITS"],
    },
    "test_control_socket.py": {
        "a_controller_that_asks_and_never_reads_is_hung_up_on": ["userdev_servers.control:MAX_UNREAD"],
        "so_many_controllers_and_no_more": ["userdev_servers.control:MAX_CONTROLLERS"],
    },
    "test_declared_values.py": {
        "deep_nesting_is_refused_both_ways": ["userdev.declare.values:MAX_DEPTH"],
        "what_is_too_large_is_refused_both_ways": [
            "userdev.declare.values:MAX_SIZE",
            "userdev.declare.values:MAX_ITEMS",
            "userdev.declare.values:MAX_BITS",
            "userdev.declare.values:MAX_KEY_BITS",
            "userdev.declare.values:MAX_TUPLE_KEYS",
        ],
    },
    "test_dma_dirty.py": {
        "memory_that_cannot_be_logged_any_more_is_not_mapped": ["vfio_user.migration.dirty_log:MAX_LOGGED"],
    },
    "test_dma_map.py": {
        "a_wrong_map_is_refused_and_changes_nothing": ["vfio_user.device.dma_map:MAX_SIZE"],
    },
    "test_fuzz_finds.py": {
        "a_find_that_is_too_long_is_none": ["userdev.fuzz.finds:MAX_FILE"],
    },
    "test_fuzz_servers.py": {
        "a_server_that_gathers_memory_is_noticed": ["userdev.fuzz.process:MAX_GROWTH"],
    },
    "test_harness_agent_answers.py": {
        "a_file_without_an_end_is_not_kept": ["vfio_user.harness.agent:MAX_FILE"],
        "a_line_without_an_end_is_not_kept": ["vfio_user.harness.agent:MAX_LINE"],
    },
    "test_harness_channels.py": {
        "a_guest_that_never_stops_talking_is_not_kept_whole": ["vfio_user.harness.console:MAX_KEPT"],
        "a_line_without_an_end_is_several_in_the_log_with_times": ["vfio_user.harness.console:MAX_LINE"],
        "a_long_log_keeps_its_beginning_and_its_end": ["vfio_user.harness.log:MAX_SIZE"],
    },
    "test_interposer_controllers.py": {
        "descriptors_of_one_command_are_bounded": ["userdev.control.lines:MAX_FDS"],
    },
    "test_interposer_descriptors.py": {
        "a_server_whose_client_does_not_answer_is_not_asked_for_more_questions_on_its_second_socket": [
            "vfio_user.interposer.twin:MAX_ASKED"
        ],
    },
    "test_interposer_journal.py": {
        "a_server_that_takes_all_and_answers_nothing_does_not_fill_the_memory": [
            "vfio_user.interposer.journal:MAX_ENTRIES",
            "vfio_user.interposer.journal:MAX_BYTES",
        ],
    },
    "test_interposer_session_model.py": {
        "posted_requests_for_interrupts_that_there_are_not_fill_nothing": [
            "vfio_user.interposer.session_model:MAX_INDEXES"
        ],
        "more_writes_than_a_config_space_has_bytes_are_too_many_for_another_server": [
            "vfio_user.interposer.session_model:MAX_CONFIG_WRITES"
        ],
    },
    "test_interposer_wrong_commands.py": {
        "a_wrong_command_is_answered_with_what_is_wrong": ["vfio_user.interposer.control.values:MAX_DATA"],
    },
    "test_migration_hostile_streams.py": {
        "an_identity_of_all_sorts_is_refused_in_a_line": ["vfio_user.migration.loading:MAX_STORAGE"],
    },
    "test_migration_stream.py": {
        "a_frame_that_claims_to_be_huge_is_refused_before_it_comes": ["vfio_user.migration.stream:MAX_FRAME"],
    },
    "test_nvme_admin.py": {
        "event_requests_wait_and_are_limited": ["userdev_servers.nvme.model:REQUEST_LIMIT"],
    },
    "test_nvme_controller.py": {
        "a_completion_queue_that_cannot_be_is_refused": ["userdev_servers.nvme.model:MAX_QUEUES"],
    },
    "test_nvme_io.py": {
        "a_long_list_of_small_pieces_is_one_transfer": ["userdev_servers.block.backing:MAX_PIECES"],
        "a_malformed_command_is_refused_and_nothing_else_happens": ["userdev_servers.nvme.spec:MAX_TRANSFER_SHIFT"],
        "a_ring_of_segments_ends": ["userdev_servers.nvme.pointers:MAX_DESCRIPTORS"],
    },
    "test_one_client_servers.py": {
        "what_a_server_prints_is_told_once_also_of_one_that_has_ended_and_not_more_than_is_kept": [
            "userdev.conformance.targets:_MOST_SAID"
        ],
    },
    "test_unmapped_memory.py": {
        "of_more_than_is_kept_it_is_known_that_it_is_not_all": ["vfio_user.interposer.unmapped:MAX_RANGES"],
        "what_cannot_be_written_again_is_refused_and_not_left_out": ["vfio_user.interposer.resending:MAX_PAGES"],
    },
    "test_state_pieces.py": {
        "the_interposer_keeps_no_piece_that_the_migration_region_has_no_room_for": [
            "vfio_user.interposer.migration_region:MAX_PIECE"
        ],
    },
    "test_interposer_limits.py": {
        "more_descriptors_than_one_send_takes_arrive_with_their_message": ["userdev.trace.format:MAX_FDS"],
    },
    "test_trace_show.py": {
        "what_is_said_of_a_packet_is_cut_to_what_an_option_holds": ["userdev.trace.pcapng:MAX_OPTION"],
    },
    "test_trace_file.py": {
        "a_damaged_length_ends_the_reading": ["userdev.trace.format:MAX_RECORD"],
        "a_damaged_record_ends_the_reading_and_what_was_before_it_is_there": ["userdev.trace.format:MAX_TIME_NS"],
    },
    "test_transport_framing.py": {
        "a_size_that_no_message_has_ends_the_stream_and_costs_no_memory": ["vfio_user.wire.header:MAX_MESSAGE"],
        "more_descriptors_than_allowed_end_the_stream_and_are_closed": ["userdev.transport.framing:MAX_FDS"],
    },
    "test_transport_sockets.py": {
        "a_path_has_at_most_107_bytes": ["userdev.transport.address:MAX_PATH"],
        "as_many_descriptors_as_the_kernel_takes_arrive_and_close_on_exec": [
            "userdev.transport.stream:MAX_FDS_PER_SEND"
        ],
    },
    "test_vhost_blk.py": {
        "what_cannot_be_done_is_answered_and_changes_nothing": [
            "userdev_servers.blk.requests:MAX_SEGMENTS",
            "userdev_servers.blk.requests:MAX_SEGMENT",
        ],
    },
    "test_vhost_device.py": {
        "a_mistake_in_a_class_is_refused_with_what_and_where_it_is": ["vhost_user.device.config:MAX_CONFIG"],
        "queues_that_cannot_be_are_refused": [
            "vhost_user.device.queues:MAX_QUEUES",
            "vhost_user.device.queues:MAX_SIZE",
        ],
    },
    "test_vhost_memory.py": {
        "there_are_as_many_regions_as_slots_and_no_more": ["vhost_user.memory.table:MAX_SLOTS"],
    },
    "test_vhost_net.py": {
        "a_driver_that_gives_no_buffers_loses_what_is_too_much": ["userdev_servers.net:BACKLOG"],
    },
    "test_vhost_wire.py": {
        "every_message_is_as_the_specification_has_it": ["vhost_user.wire.payloads:MAX_SHMEM_REGIONS"],
        "a_size_beyond_all_messages_ends_the_connection": ["vhost_user.wire.header:MAX_PAYLOAD"],
        "more_descriptors_than_any_message_has_are_closed_and_end_the_connection": ["vhost_user.wire.header:MAX_FDS"],
        "more_than_256_bytes_of_configuration_space_are_refused": ["vhost_user.wire.payloads:MAX_CONFIG"],
        "more_than_eight_regions_are_refused": ["vhost_user.wire.payloads:MAX_REGIONS"],
    },
    "vhost/test_broken_rings.py": {
        "a_chain_of_more_than_4_gib_breaks_the_ring": ["vhost_user.rings.ring:MAX_BYTES"],
    },
    "vhost/test_device_state.py": {
        "a_state_without_an_end_is_refused_where_it_is_too_long": ["vhost_user.device.saved:MAX_STATE"],
    },
    "vhost/test_interposer_model.py": {
        "regions_that_nobody_refuses_are_kept_up_to_a_bound_and_the_last_of_each_address": [
            "vhost_user.interposer.session_model:MAX_SLOTS"
        ],
    },
    "vhost/test_recovery.py": {
        "an_in_flight_region_for_other_queues_ends_the_connection": ["vhost_user.backend.inflight:MAX_SIZE"],
    },
}
"""By file, and by the name of a test in it: the bounds that it tries."""


NO_BOUNDS: Mapping[str, str] = {
    "vfio_user.wire.header:MAX_DATA": "what VERSION offers; a message has MAX_MESSAGE",
    "vfio_user.interposer.codec:MAX_FRAME": "what a relay takes for a message of anybody's",
    "vhost_user.interposer.codec:MAX_FRAME": "the same",
    "vfio_user.interposer.replay.player:_LIMIT_FD": "a file for what a trace has of memory, which costs nothing",
    "vhost_user.memory.iotlb:_MOST": "all addresses that there are",
    "vhost_user.frontend.conformance.iommu:_MOST_QUESTIONS": "what a check waits for, of the back-end that it is about",
    "userdev_servers.nvme.spec:MAX_TRANSFER": "MAX_TRANSFER_SHIFT has it",
    "userdev_servers.nvme.nvme:MAX_PAGE_SHIFT": "what the controller says of pages",
}
"""Constants with such names that are none, and why."""
