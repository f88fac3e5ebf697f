/* SPDX-License-Identifier: Apache-2.0
 *
 * Prints the layout of tqkv.h: sizes, offsets, constants. layout.txt is what version 0.1 printed on LP64; a
 * line that changes or goes is a break of the ABI, a line that is new behind the others of its struct is
 * growth.
 */
#include <stddef.h>
#include <stdio.h>

#include "tqkv.h"

#define STRUCT(type)                                            \
  printf("struct %s size %zu align %zu\n", #type, sizeof(type), \
         offsetof(                                              \
             struct {                                           \
               char c;                                          \
               type t;                                          \
             },                                                 \
             t))
#define FIELD(type, field) \
  printf("%s.%s offset %zu size %zu\n", #type, #field, offsetof(type, field), sizeof(((type*)0)->field))
#define CONSTANT(name) printf("constant %s %lld\n", #name, (long long)(name))
#define TYPE(type) printf("type %s size %zu signed %d\n", #type, sizeof(type), (type)-1 < (type)0)

static void structs(void) {
  STRUCT(tq_device_info);
  FIELD(tq_device_info, struct_size);
  FIELD(tq_device_info, device_type);
  FIELD(tq_device_info, device_id);
  FIELD(tq_device_info, compute_major);
  FIELD(tq_device_info, compute_minor);
  FIELD(tq_device_info, num_units);
  FIELD(tq_device_info, memory_bytes);
  FIELD(tq_device_info, name);
  STRUCT(tq_codebook);
  FIELD(tq_codebook, struct_size);
  FIELD(tq_codebook, bits);
  FIELD(tq_codebook, unit);
  FIELD(tq_codebook, magnitude);
  STRUCT(tq_allocator);
  FIELD(tq_allocator, struct_size);
  FIELD(tq_allocator, reserved);
  FIELD(tq_allocator, user);
  FIELD(tq_allocator, alloc);
  FIELD(tq_allocator, free);
  STRUCT(tq_layer_config);
  FIELD(tq_layer_config, struct_size);
  FIELD(tq_layer_config, num_q_heads);
  FIELD(tq_layer_config, num_kv_heads);
  FIELD(tq_layer_config, head_dim);
  FIELD(tq_layer_config, value_dim);
  FIELD(tq_layer_config, key_bits);
  FIELD(tq_layer_config, value_bits);
  FIELD(tq_layer_config, key_family);
  FIELD(tq_layer_config, value_family);
  FIELD(tq_layer_config, rotation);
  FIELD(tq_layer_config, sliding_window);
  FIELD(tq_layer_config, shares_layer);
  FIELD(tq_layer_config, first_kv_head);
  FIELD(tq_layer_config, group_size);
  STRUCT(tq_layer_bytes);
  FIELD(tq_layer_bytes, struct_size);
  FIELD(tq_layer_bytes, group);
  FIELD(tq_layer_bytes, num_pages);
  FIELD(tq_layer_bytes, page_bytes);
  FIELD(tq_layer_bytes, raw_bytes);
  FIELD(tq_layer_bytes, token_bytes);
  FIELD(tq_layer_bytes, fp16_token_bytes);
  STRUCT(tq_cache_config);
  FIELD(tq_cache_config, struct_size);
  FIELD(tq_cache_config, device_type);
  FIELD(tq_cache_config, device_id);
  FIELD(tq_cache_config, num_layers);
  FIELD(tq_cache_config, num_q_heads);
  FIELD(tq_cache_config, num_kv_heads);
  FIELD(tq_cache_config, head_dim);
  FIELD(tq_cache_config, value_dim);
  FIELD(tq_cache_config, io_dtype);
  FIELD(tq_cache_config, key_bits);
  FIELD(tq_cache_config, value_bits);
  FIELD(tq_cache_config, code_family);
  FIELD(tq_cache_config, layer_key_bits);
  FIELD(tq_cache_config, layer_value_bits);
  FIELD(tq_cache_config, rotation);
  FIELD(tq_cache_config, key_scale_rule);
  FIELD(tq_cache_config, value_scale_rule);
  FIELD(tq_cache_config, page_size);
  FIELD(tq_cache_config, rotation_seed);
  FIELD(tq_cache_config, first_layer);
  FIELD(tq_cache_config, first_kv_head);
  FIELD(tq_cache_config, key_codebook);
  FIELD(tq_cache_config, value_codebook);
  FIELD(tq_cache_config, max_tokens);
  FIELD(tq_cache_config, max_reserve_tokens);
  FIELD(tq_cache_config, max_sequence_tokens);
  FIELD(tq_cache_config, max_sequences);
  FIELD(tq_cache_config, max_batch_sequences);
  FIELD(tq_cache_config, max_batch_tokens);
  FIELD(tq_cache_config, max_raw_tokens);
  FIELD(tq_cache_config, window_tokens);
  FIELD(tq_cache_config, sink_tokens);
  FIELD(tq_cache_config, rollback_tokens);
  FIELD(tq_cache_config, num_threads);
  FIELD(tq_cache_config, flags);
  FIELD(tq_cache_config, allocator);
  FIELD(tq_cache_config, pool);
  FIELD(tq_cache_config, pool_bytes);
  FIELD(tq_cache_config, layers);
  FIELD(tq_cache_config, key_family);
  FIELD(tq_cache_config, value_family);
  FIELD(tq_cache_config, group_size);
  FIELD(tq_cache_config, reserved);
  STRUCT(tq_cache_bytes);
  FIELD(tq_cache_bytes, struct_size);
  FIELD(tq_cache_bytes, reserved);
  FIELD(tq_cache_bytes, page_bytes);
  FIELD(tq_cache_bytes, raw_bytes);
  FIELD(tq_cache_bytes, table_bytes);
  FIELD(tq_cache_bytes, workspace_bytes);
  FIELD(tq_cache_bytes, device_bytes);
  FIELD(tq_cache_bytes, host_bytes);
  FIELD(tq_cache_bytes, num_pages);
  FIELD(tq_cache_bytes, token_bytes);
  FIELD(tq_cache_bytes, fp16_token_bytes);
  STRUCT(tq_cache_memory);
  FIELD(tq_cache_memory, struct_size);
  FIELD(tq_cache_memory, num_sequences);
  FIELD(tq_cache_memory, tokens);
  FIELD(tq_cache_memory, pages_used);
  FIELD(tq_cache_memory, pages_total);
  FIELD(tq_cache_memory, stored_bytes_used);
  FIELD(tq_cache_memory, raw_bytes);
  FIELD(tq_cache_memory, device_bytes);
  FIELD(tq_cache_memory, host_bytes);
  FIELD(tq_cache_memory, compression);
  FIELD(tq_cache_memory, raw_bytes_used);
  STRUCT(tq_state);
  FIELD(tq_state, struct_size);
  FIELD(tq_state, first_layer);
  FIELD(tq_state, num_layers);
  FIELD(tq_state, first_kv_head);
  FIELD(tq_state, num_kv_heads);
  FIELD(tq_state, io_dtype);
  FIELD(tq_state, first_token);
  FIELD(tq_state, num_tokens);
  FIELD(tq_state, exact_sinks);
  FIELD(tq_state, exact_first);
  FIELD(tq_state, rollback_tokens);
  FIELD(tq_state, flags);
  FIELD(tq_state, identity);
  FIELD(tq_state, bytes);
  STRUCT(tq_io);
  FIELD(tq_io, struct_size);
  FIELD(tq_io, reserved);
  FIELD(tq_io, user);
  FIELD(tq_io, write);
  FIELD(tq_io, read);
  STRUCT(tq_tensor_layout);
  FIELD(tq_tensor_layout, struct_size);
  FIELD(tq_tensor_layout, reserved);
  FIELD(tq_tensor_layout, key_token_stride);
  FIELD(tq_tensor_layout, key_head_stride);
  FIELD(tq_tensor_layout, value_token_stride);
  FIELD(tq_tensor_layout, value_head_stride);
  STRUCT(tq_attend_params);
  FIELD(tq_attend_params, struct_size);
  FIELD(tq_attend_params, out_dtype);
  FIELD(tq_attend_params, softmax_scale);
  FIELD(tq_attend_params, logit_softcap);
  FIELD(tq_attend_params, sliding_window);
  FIELD(tq_attend_params, sink_logits);
  FIELD(tq_attend_params, history_only);
  FIELD(tq_attend_params, tree_words);
  FIELD(tq_attend_params, q_token_stride);
  FIELD(tq_attend_params, q_head_stride);
  FIELD(tq_attend_params, out_token_stride);
  FIELD(tq_attend_params, out_head_stride);
  FIELD(tq_attend_params, visible_begin);
  FIELD(tq_attend_params, visible_end);
  FIELD(tq_attend_params, tree_mask);
  FIELD(tq_attend_params, alibi_slopes);
  STRUCT(tq_pages);
  FIELD(tq_pages, struct_size);
  FIELD(tq_pages, block_size);
  FIELD(tq_pages, base);
  FIELD(tq_pages, num_blocks);
  FIELD(tq_pages, block_stride);
  FIELD(tq_pages, head_stride);
  STRUCT(tq_page_layout);
  FIELD(tq_page_layout, struct_size);
  FIELD(tq_page_layout, alignment);
  FIELD(tq_page_layout, block_bytes);
  FIELD(tq_page_layout, block_head_bytes);
  FIELD(tq_page_layout, token_bytes);
  FIELD(tq_page_layout, block_stride);
  FIELD(tq_page_layout, head_stride);
  FIELD(tq_page_layout, total_bytes);
  STRUCT(tq_paged_step);
  FIELD(tq_paged_step, struct_size);
  FIELD(tq_paged_step, num_reqs);
  FIELD(tq_paged_step, num_tokens);
  FIELD(tq_paged_step, max_query_len);
  FIELD(tq_paged_step, max_seq_len);
  FIELD(tq_paged_step, slot_mapping);
  FIELD(tq_paged_step, block_table);
  FIELD(tq_paged_step, block_table_stride);
  FIELD(tq_paged_step, seq_lens);
  FIELD(tq_paged_step, query_start_loc);
  STRUCT(tq_levels);
  FIELD(tq_levels, struct_size);
  FIELD(tq_levels, bits);
  FIELD(tq_levels, unit);
  FIELD(tq_levels, reserved);
  FIELD(tq_levels, levels);
  FIELD(tq_levels, boundaries);
  STRUCT(tq_quantizer_config);
  FIELD(tq_quantizer_config, struct_size);
  FIELD(tq_quantizer_config, device_type);
  FIELD(tq_quantizer_config, dim);
  FIELD(tq_quantizer_config, io_dtype);
  FIELD(tq_quantizer_config, family);
  FIELD(tq_quantizer_config, bits);
  FIELD(tq_quantizer_config, rotation);
  FIELD(tq_quantizer_config, scale_rule);
  FIELD(tq_quantizer_config, group_size);
  FIELD(tq_quantizer_config, sketch);
  FIELD(tq_quantizer_config, sketch_rule);
  FIELD(tq_quantizer_config, sketch_factor);
  FIELD(tq_quantizer_config, num_outliers);
  FIELD(tq_quantizer_config, num_threads);
  FIELD(tq_quantizer_config, outlier_channels);
  FIELD(tq_quantizer_config, seed);
  FIELD(tq_quantizer_config, codebook);
  FIELD(tq_quantizer_config, levels);
  FIELD(tq_quantizer_config, flags);
  FIELD(tq_quantizer_config, allocator);
  STRUCT(tq_quantizer_info);
  FIELD(tq_quantizer_info, struct_size);
  FIELD(tq_quantizer_info, rotated_dim);
  FIELD(tq_quantizer_info, code_bytes);
  FIELD(tq_quantizer_info, fingerprint);
  FIELD(tq_quantizer_info, sketch_factor);
  FIELD(tq_quantizer_info, reserved);
}

static void constants(void) {
  CONSTANT(TQ_VERSION_MAJOR);
  CONSTANT(TQ_VERSION_MINOR);
  CONSTANT(TQ_VERSION_PATCH);
  CONSTANT(TQ_ABI_VERSION);
  CONSTANT(TQ_OK);
  CONSTANT(TQ_ERROR_INVALID_ARGUMENT);
  CONSTANT(TQ_ERROR_INVALID_STATE);
  CONSTANT(TQ_ERROR_OUT_OF_MEMORY);
  CONSTANT(TQ_ERROR_CAPACITY);
  CONSTANT(TQ_ERROR_NOT_SUPPORTED);
  CONSTANT(TQ_ERROR_NO_DEVICE);
  CONSTANT(TQ_ERROR_DRIVER);
  CONSTANT(TQ_ERROR_CUDA);
  CONSTANT(TQ_ERROR_VERSION);
  CONSTANT(TQ_ERROR_CORRUPT_DATA);
  CONSTANT(TQ_ERROR_INCOMPATIBLE);
  CONSTANT(TQ_ERROR_WORKSPACE_TOO_SMALL);
  CONSTANT(TQ_ERROR_CAPTURE);
  CONSTANT(TQ_ERROR_IO);
  CONSTANT(TQ_ERROR_INTERNAL);
  CONSTANT(TQ_STRUCT_CACHE_CONFIG);
  CONSTANT(TQ_STRUCT_CACHE_BYTES);
  CONSTANT(TQ_STRUCT_CACHE_MEMORY);
  CONSTANT(TQ_STRUCT_TENSOR_LAYOUT);
  CONSTANT(TQ_STRUCT_ATTEND_PARAMS);
  CONSTANT(TQ_STRUCT_DEVICE_INFO);
  CONSTANT(TQ_STRUCT_CODEBOOK);
  CONSTANT(TQ_STRUCT_ALLOCATOR);
  CONSTANT(TQ_STRUCT_LAYER_CONFIG);
  CONSTANT(TQ_STRUCT_LAYER_BYTES);
  CONSTANT(TQ_STRUCT_PAGES);
  CONSTANT(TQ_STRUCT_PAGE_LAYOUT);
  CONSTANT(TQ_STRUCT_PAGED_STEP);
  CONSTANT(TQ_STRUCT_LEVELS);
  CONSTANT(TQ_STRUCT_QUANTIZER_CONFIG);
  CONSTANT(TQ_STRUCT_QUANTIZER_INFO);
  CONSTANT(TQ_STRUCT_STATE);
  CONSTANT(TQ_STRUCT_IO);
  CONSTANT(TQ_DEVICE_CPU);
  CONSTANT(TQ_DEVICE_CUDA);
  CONSTANT(TQ_F32);
  CONSTANT(TQ_F16);
  CONSTANT(TQ_BF16);
  CONSTANT(TQ_ROTATION_HADAMARD);
  CONSTANT(TQ_ROTATION_DENSE);
  CONSTANT(TQ_SCALE_LS);
  CONSTANT(TQ_SCALE_UNBIASED);
  CONSTANT(TQ_SCALE_NORM);
  CONSTANT(TQ_SCALE_PAPER);
  CONSTANT(TQ_CODE_SCALAR);
  CONSTANT(TQ_CODE_PROD);
  CONSTANT(TQ_CODE_GROUPED);
  CONSTANT(TQ_CODE_LEVELS);
  CONSTANT(TQ_SKETCH_ORTHOGONAL);
  CONSTANT(TQ_SKETCH_GAUSSIAN);
  CONSTANT(TQ_SKETCH_UNBIASED);
  CONSTANT(TQ_SKETCH_LEAST_ERROR);
  CONSTANT(TQ_FLAG_NO_ZERO_ON_FREE);
  CONSTANT(TQ_FLAG_NO_SCALE_SEARCH);
  CONSTANT(TQ_FLAG_BATCH_INVARIANT);
  CONSTANT(TQ_NOTICED_NONFINITE);
  CONSTANT(TQ_NOTICED_SATURATED);
  CONSTANT(TQ_NOTICED_SHORT_WINDOW);
  CONSTANT(TQ_NOTICED_OUT_OF_RANGE);
  CONSTANT(TQ_PAGES_BLOCKS_FIRST);
  CONSTANT(TQ_PAGES_HEADS_FIRST);
}

int main(void) {
  TYPE(tq_status);
  TYPE(tq_device_type);
  TYPE(tq_dtype);
  TYPE(tq_rotation);
  TYPE(tq_scale_rule);
  TYPE(tq_code_family);
  TYPE(tq_sequence);
  TYPE(tq_page_order);
  TYPE(tq_sketch);
  TYPE(tq_sketch_rule);
  structs();
  constants();
  return 0;
}
