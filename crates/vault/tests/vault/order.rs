//! What a backup asks of its store, in order. Where a change moves a line here, the promises of `docs/format.md` under
//! "Order of writing" have to be read again.

use std::sync::{Arc, LazyLock};

use strongroom_proto::Attempt;
use strongroom_vault::ChunkIndex;
use tracing::span;

use crate::support::*;
use crate::trees::{Content, Tree};

/// Notes the store's barriers among its calls: the operating system is asked for them, and no object is.
pub(crate) struct Barriers(Arc<Control>);

impl Barriers {
    /// Notes the barriers of this thread until the guard is dropped.
    pub(crate) fn noted_by(control: &Arc<Control>) -> tracing::subscriber::DefaultGuard {
        // While there is but one subscriber, a place in the code that another thread comes to first is silent for good.
        static SECOND: LazyLock<tracing::Dispatch> = LazyLock::new(|| tracing::Dispatch::new(Barriers(Arc::default())));
        LazyLock::force(&SECOND);
        tracing::subscriber::set_default(Self(Arc::clone(control)))
    }
}

impl tracing::Subscriber for Barriers {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "strongroom_vault::store"
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Message(bool);
        impl tracing::field::Visit for Message {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 |= field.name() == "message" && format!("{value:?}") == "barrier";
            }
        }
        let mut message = Message(false);
        event.record(&mut message);
        if message.0 {
            self.0.note("barrier".to_owned());
        }
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

struct Recorded {
    fixture: Fixture,
    control: Arc<Control>,
}

impl Recorded {
    fn new() -> Self {
        let control = Arc::new(Control::default());
        let fixture = Fixture::over(|store| control.wrap(store));
        control.take_all();
        Self { fixture, control }
    }

    /// The calls of a backup, each as what is done to which kind of object.
    fn back_up(&mut self, tree: &Tree, number: i64) -> Vec<String> {
        let fixture = &mut self.fixture;
        // As another process, which knows nothing yet.
        fixture.index = Arc::new(ChunkIndex::new(&fixture.vault, &fixture.writer_key));
        let _noting = Barriers::noted_by(&self.control);
        fixture.runtime.block_on(fixture.index.refresh()).unwrap();
        let id = Fixture::id(number);
        let cache = fixture.folder.path().join("cache");
        let mut writer = fixture
            .writer(&id, Attempt::FIRST)
            .unwrap()
            .with_cache(&cache, &fixture.writer_key);
        tree.put_into(&mut writer).unwrap();
        let sealed = writer.finish().unwrap();
        let receipt = fixture.receipt(&id, Attempt::FIRST, &sealed);
        fixture
            .runtime
            .block_on(fixture.vault.commit(&receipt, &fixture.signer))
            .unwrap();
        let calls: Vec<String> = self.control.take_all().iter().map(|call| kind_of(call)).collect();
        tree.assert_restores(fixture, &id);
        self.control.take_all();
        calls
    }
}

/// The call with every part of its path left out that is another in every run.
fn kind_of(call: &str) -> String {
    let Some((done, path)) = call.split_once(' ') else {
        return call.to_owned();
    };
    let parts: Vec<&str> = path.split('/').collect();
    let kind = match parts.as_slice() {
        ["packs", _, _] => "pack".to_owned(),
        ["index", _] => "index object".to_owned(),
        ["staging", _] => "staged".to_owned(),
        ["keys", name] => format!("keys/….{}", name.rsplit('.').next().unwrap()),
        ["backups", _, rest @ ..] => rest.join("/"),
        _ => path.to_owned(),
    };
    format!("{done} {kind}")
}

/// What a backup reuses is looked at once more: whether the pack is there, with its size, before anything relies on it, and
/// the index object as late as can be. A small backup asks for all its packs at once.
const REUSED: [&str; 2] = ["head pack", "get index object"];

/// The store is looked at for newer keys before anything is written with the ones that are known.
fn begin(index_objects: usize) -> impl Iterator<Item = &'static str> {
    ["list index"]
        .into_iter()
        .chain(std::iter::repeat_n("get index object", index_objects))
        .chain(["get keys/generations/2.jsonl", "get keys/….vault-mac"])
}

/// Every put is read back; the receipt is staged, and appears between two barriers.
const END: [&str; 12] = [
    "put a1/manifest",
    "get a1/manifest",
    "put a1/packs",
    "get a1/packs",
    "put a1/receipt.json.sig",
    "get a1/receipt.json.sig",
    "put staged",
    "get staged",
    "barrier",
    "link receipt.json",
    "barrier",
    "delete staged",
];

fn a_tree() -> Tree {
    let mut tree = Tree::default();
    tree.put("a", Content::of(rows(1, 2_000)));
    tree.put("b", Content::of(noise(2, 5_000_000)));
    tree
}

#[test]
fn a_first_backup_makes_its_packs_durable_before_its_index_and_everything_before_its_receipt() {
    let mut recorded = Recorded::new();
    let stored = [
        "put pack",
        "get pack",
        "barrier",
        "put index object",
        "get index object",
        "barrier",
    ];
    let expected: Vec<&str> = begin(0).chain(stored).chain(END).collect();
    assert_eq!(recorded.back_up(&a_tree(), 1), expected);
}

#[test]
fn an_unchanged_backup_stores_its_three_documents_and_no_pack() {
    let mut recorded = Recorded::new();
    let tree = a_tree();
    recorded.back_up(&tree, 1);
    let expected: Vec<&str> = begin(1).chain(REUSED).chain(END).collect();
    for number in 2..4 {
        let calls = recorded.back_up(&tree, number);
        assert_eq!(calls, expected, "backup {number}");
    }
}

#[test]
fn a_changed_file_costs_one_pack_and_one_index_object() {
    let mut recorded = Recorded::new();
    let mut tree = a_tree();
    recorded.back_up(&tree, 1);
    tree.change(1, |file| file.content.bytes[2_000_000] ^= 1);
    let stored = [
        "put pack",
        "get pack",
        "barrier",
        "put index object",
        "get index object",
        "barrier",
    ];
    let [looked_at, held] = REUSED;
    let expected: Vec<&str> = begin(1)
        .chain([looked_at])
        .chain(stored)
        .chain([held])
        .chain(END)
        .collect();
    assert_eq!(recorded.back_up(&tree, 2), expected);
}

/// A table that outlives the process, as the catalog does, may know of an index object that has rotted since.
#[test]
fn an_index_object_that_is_no_longer_as_it_was_is_not_relied_on() {
    let mut recorded = Recorded::new();
    let tree = a_tree();
    recorded.back_up(&tree, 1);
    let fixture = &recorded.fixture;
    let name = fixture.objects().into_iter().find(|o| o.starts_with("index/")).unwrap();
    let path = fixture.path().join(&name);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    // The same index, which was filled before.
    let id = Fixture::id(2);
    let mut writer = fixture.writer(&id, Attempt::FIRST).unwrap();
    tree.put_into(&mut writer).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains(&name), "{error}");
    // The next attempt stores what it listed again.
    let second = Attempt::new(2);
    let mut writer = fixture.writer(&id, second).unwrap();
    tree.put_into(&mut writer).unwrap();
    let sealed = writer.finish().unwrap();
    assert!(sealed.totals.new_chunks > 0);
    let receipt = fixture.receipt(&id, second, &sealed);
    fixture
        .runtime
        .block_on(fixture.vault.commit(&receipt, &fixture.signer))
        .unwrap();
    tree.assert_restores(fixture, &id);
}
