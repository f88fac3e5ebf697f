// SPDX-License-Identifier: Apache-2.0
//! One step of an engine on its pages: planned once, then appended and attended in each layer.

use crate::attend::{AttendParams, AttendPointers};
use crate::error::{Error, Result, Status};
use crate::paged::PagedCodec;
use crate::pages::Pages;
use crate::sys;
use crate::tensor;
use crate::types::{Element, Layout, Stream};
use core::ffi::c_void;
use core::ptr;

/// What an engine says of a step; copied by [`PagedCodec::plan`].
#[derive(Clone, Copy, Debug, Default)]
pub struct StepArrays<'a> {
    /// Per token its slot, `block * block_size + place in the block`, or -1: not stored. `None`: a step
    /// without append.
    pub slot_mapping: Option<&'a [i64]>,
    /// `[requests][blocks]`: as many entries for each request. With it go the next two; all empty: a step
    /// without attend.
    pub block_table: &'a [i32],
    /// Tokens of each request, new ones included; 0: padding.
    pub seq_lens: &'a [i32],
    /// Rows of the requests' queries, from 0 on: one entry more than requests.
    pub query_start_loc: &'a [i32],
    /// Rows of q, k and v; 0: those of `slot_mapping`.
    pub num_tokens: i64,
    /// No request has more queries; 0: `num_tokens`.
    pub max_query_len: i32,
    /// No request has more tokens; 0: what the block table has room for, at the codec's `page_size`.
    pub max_seq_len: i32,
}

#[derive(Default)]
struct Owned {
    slots: Vec<i64>,
    table: Vec<i32>,
    lens: Vec<i32>,
    starts: Vec<i32>,
}

/// 256 bytes at a multiple of as many.
#[derive(Clone, Copy)]
#[repr(C, align(256))]
struct Chunk([u8; 256]);

/// The plan of one step of an engine: room that grows with the steps. [`PagedCodec::plan`] once, then append
/// and attend each layer.
#[derive(Default)]
pub struct PagedStep {
    owned: Owned,
    workspace: Vec<Chunk>,
    planned: Option<(u64, sys::tq_paged_step)>, // by which codec
}

// SAFETY: the raw step points to what this object owns.
unsafe impl Send for PagedStep {}
// SAFETY: as above; shared it can do nothing.
unsafe impl Sync for PagedStep {}

impl std::fmt::Debug for PagedStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PagedStep").field("planned", &self.planned.is_some()).finish_non_exhaustive()
    }
}

impl PagedStep {
    /// Without a plan.
    pub fn new() -> PagedStep {
        PagedStep::default()
    }

    fn workspace(&mut self) -> (*mut c_void, usize) {
        (self.workspace.as_mut_ptr().cast(), self.workspace.len() * 256)
    }

    /// The plan that this codec made.
    fn planned(&self, codec: u64) -> Result<sys::tq_paged_step> {
        let refused = |why: &str| Err(Error::new(Status::InvalidState, format!("step: {why}")));
        match self.planned {
            None => refused("no plan was made yet"),
            Some((owner, _)) if owner != codec => refused("its plan is another codec's"),
            Some((_, raw)) => Ok(raw),
        }
    }
}

impl PagedCodec {
    /// Plans one step of an engine.
    pub fn plan(&self, step: &mut PagedStep, arrays: &StepArrays<'_>) -> Result<()> {
        step.planned = None;
        let requests = arrays.seq_lens.len();
        let attends = requests > 0 || !arrays.query_start_loc.is_empty() || !arrays.block_table.is_empty();
        if attends && arrays.query_start_loc.len() != requests + 1 {
            return Err(Error::argument(format!(
                "query_start_loc: {} entries, {requests} requests need one more",
                arrays.query_start_loc.len()
            )));
        }
        let columns = arrays.block_table.len().checked_div(requests).unwrap_or(0);
        if columns * requests != arrays.block_table.len() {
            return Err(Error::argument(format!(
                "block_table: {} entries are no rows of {requests} requests",
                arrays.block_table.len()
            )));
        }
        let num_tokens = match (arrays.num_tokens, arrays.slot_mapping) {
            (0, slots) => slots.map_or(0, |slots| slots.len() as i64),
            (tokens, Some(slots)) if tokens != slots.len() as i64 => {
                return Err(Error::argument(format!(
                    "num_tokens = {tokens}: slot_mapping has {} entries",
                    slots.len()
                )))
            }
            (tokens, _) => tokens,
        };
        let within = |most: i64| most.clamp(0, i64::from(i32::MAX)) as i32;
        let room = within(columns as i64 * i64::from(self.page_size));
        step.owned = Owned {
            slots: arrays.slot_mapping.unwrap_or_default().to_vec(),
            table: arrays.block_table.to_vec(),
            lens: arrays.seq_lens.to_vec(),
            starts: arrays.query_start_loc.to_vec(),
        };
        let given = |list: &Vec<i32>| if attends { list.as_ptr() } else { ptr::null() };
        let raw = sys::tq_paged_step {
            num_reqs: tensor::count("seq_lens", requests)?,
            num_tokens,
            max_query_len: if arrays.max_query_len == 0 { within(num_tokens) } else { arrays.max_query_len },
            max_seq_len: if arrays.max_seq_len == 0 { room } else { arrays.max_seq_len },
            slot_mapping: arrays.slot_mapping.map_or(ptr::null(), |_| step.owned.slots.as_ptr()),
            block_table: given(&step.owned.table),
            block_table_stride: columns as i64,
            seq_lens: given(&step.owned.lens),
            query_start_loc: given(&step.owned.starts),
            ..Default::default()
        };
        let (api, mut bytes) = (self.library.api(), 0);
        // SAFETY: of the step the numbers alone are looked at.
        self.library.status(unsafe { (api.tq_paged_workspace_bytes)(self.shared().0, &raw, &mut bytes) })?;
        if step.workspace.len() * 256 < bytes {
            step.workspace.resize(bytes.div_ceil(256), Chunk([0; 256]));
        }
        let (workspace, bytes) = step.workspace();
        // SAFETY: the arrays are this object's, as long as the step says.
        self.library.status(unsafe {
            (api.tq_paged_plan)(self.shared().0, &raw, workspace, bytes, Stream::NONE.as_raw())
        })?;
        step.planned = Some((self.id, raw));
        Ok(())
    }

    /// Encodes `k`, `[tokens][num_kv_heads][head_dim]`, and `v`, likewise with `value_dim` (empty: the layer
    /// is latent), into their slots.
    pub fn append<T: Element>(
        &self,
        step: &mut PagedStep,
        layer: i32,
        pages: &mut Pages<'_>,
        k: &[T],
        v: &[T],
    ) -> Result<()> {
        let raw = step.planned(self.id)?;
        self.geometry.check_host::<T>("k and v")?;
        let v = self.geometry.values(layer, v);
        self.geometry.check_kv(layer, Some(k.len()), v.map(<[T]>::len), raw.num_tokens, Layout::DENSE)?;
        let pages = self.checked(layer, pages)?;
        let layout = Layout::DENSE.to_raw();
        let (workspace, bytes) = step.workspace();
        let v = v.map_or(std::ptr::null(), |v| v.as_ptr().cast());
        let (k, append) = (k.as_ptr().cast(), self.library.api().tq_paged_append);
        // SAFETY: memory of a CPU codec, as long as the step needs, pages as long as they say.
        self.library.status(unsafe {
            let codec = self.shared();
            append(codec.0, layer, pages, &raw, k, v, &layout, workspace, bytes, Stream::NONE.as_raw())
        })
    }

    /// Attention of the step's queries on the blocks: `q` is `[tokens][num_q_heads][head_dim]`, `out`
    /// `[tokens][num_q_heads][value_dim]`, of the codec's type or `f32`. Rows of padding: 0.
    pub fn attend<T: Element, O: Element>(
        &self,
        step: &mut PagedStep,
        layer: i32,
        pages: &Pages<'_>,
        q: &[T],
        out: &mut [O],
    ) -> Result<()> {
        self.attend_with(step, layer, pages, q, out, None, &AttendParams::default())
    }

    /// [`PagedCodec::attend`] with parameters and `lse`, `[tokens][num_q_heads]`; as
    /// [`crate::Cache::attend_with`].
    #[allow(clippy::too_many_arguments)]
    pub fn attend_with<T: Element, O: Element>(
        &self,
        step: &mut PagedStep,
        layer: i32,
        pages: &Pages<'_>,
        q: &[T],
        out: &mut [O],
        lse: Option<&mut [f32]>,
        params: &AttendParams<'_>,
    ) -> Result<()> {
        let raw = step.planned(self.id)?;
        let pointers = self.geometry.check_attend(layer, raw.num_tokens, q, out, lse, params)?;
        let params = AttendParams { out_dtype: O::DTYPE, ..*params }.to_raw(&pointers);
        let pages = self.checked(layer, pages)?;
        let (workspace, bytes) = step.workspace();
        let AttendPointers { q, out, lse, .. } = pointers;
        let attend = self.library.api().tq_paged_attend;
        // SAFETY: memory of a CPU codec, of the types said, as long as the step needs; pages as long as they
        // say.
        self.library.status(unsafe {
            let codec = self.shared();
            attend(codec.0, layer, pages, &raw, q, out, lse, &params, workspace, bytes, Stream::NONE.as_raw())
        })
    }
}
