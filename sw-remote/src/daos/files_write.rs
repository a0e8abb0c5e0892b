//! A file of DAOS in the making.

use std::{
    ffi::{CStr, CString},
    sync::Arc,
};

use sw_engine::{Error, Verb, Version, WriteOutcome, seam::WriteIntent};

use super::{
    Daos, Place, fault,
    files::parts,
    sys::{
        Code, Failed,
        dfs::{Access, Mount, Node},
    },
    text,
};
use crate::foreign::{
    draft::{Draft, Leftover, Making, OPEN, temporary},
    held::Held,
};

/// It, under its temporary name.
struct Written {
    name: String,
    above: Arc<Held<Node>>,
    file: Arc<Held<Node>>,
    temporary: CString,
    leaf: CString,
}

impl Draft for Written {
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Error> {
        self.file.write(offset, from).map_err(|failed| fault::of_change(failed, Verb::Write, &self.name))
    }

    fn set_len(&self, len: u64) -> Result<(), Error> {
        self.file.set_len(len).map_err(|failed| fault::told(failed, Verb::Create, &self.name))
    }

    fn sync(&self) -> Result<(), Error> {
        self.above.mount.sync().map_err(|failed| fault::told(failed, Verb::Flush, &self.name))
    }

    fn rename(&self) -> Result<(), Error> {
        let renamed = self.above.rename(&self.temporary, &self.leaf);
        renamed.map_err(|failed| fault::of_rename(failed, &self.name, &self.temporary.to_string_lossy()))
    }

    fn sync_names(&self) -> Result<(), Error> {
        self.sync()
    }

    fn remove(&self) -> bool {
        self.above.remove(&self.temporary).is_ok()
    }

    /// Without a transaction `dfs_move` inserts the new name, of the same object, before it removes the old one; and `dfs_remove` punches the
    /// object (DAOS 2.6 `src/client/dfs/rename.c`, `remove.c`).
    fn leftover(&self) -> Leftover {
        Leftover::Left(self.temporary.to_string_lossy().into_owned())
    }
}

/// The directory of this path, made with those above it where they are not there.
fn directory(mount: &Arc<Held<Mount>>, path: &str) -> Result<Node, Failed> {
    let text =
        |path: &str| CString::new(path).map_err(|_| Failed { call: "dfs_mkdir", code: Code::Errno(libc::EINVAL) });
    let look_up = |path: &CStr| Node::look_up(mount, path, Access::ReadWrite).map(|(node, _)| node);
    match look_up(&text(path)?) {
        Err(Failed { code: Code::Errno(libc::ENOENT), .. }) => {}
        other => return other,
    }
    let mut above = look_up(c"/")?;
    let mut here = String::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        above.make_directory(&text(part)?)?;
        here = format!("{here}/{part}");
        above = look_up(&text(&here)?)?;
    }
    Ok(above)
}

impl Daos {
    pub(super) fn create_file(&self, place: Place, len: Option<u64>) -> Result<Box<dyn WriteIntent>, Error> {
        let name = place.name();
        let making = self.run((Verb::Create, &name), move |shared| {
            let name = place.name();
            let told = |failed| fault::of_begin(failed, Verb::Create, &name);
            let mount = shared.mount(&place, Access::ReadWrite, Verb::Create)?;
            let there = Node::look_up(&mount, &text(&place.path, Verb::Create, &name)?, Access::Read);
            if there.is_ok_and(|(_, facts)| facts.format == libc::S_IFDIR) {
                return Err(fault::wrong_kind(&name, "a directory has this name"));
            }
            let (above, leaf) = parts(&place.path);
            let temporary = text(&temporary(leaf), Verb::Create, &name)?;
            let leaf = text(leaf, Verb::Create, &name)?;
            let above = Arc::new(Held::new(directory(&mount, above).map_err(told)?, &shared.calls));
            let file = Arc::new(Held::new(above.create(&temporary).map_err(told)?, &shared.calls));
            let written = Written { name, above, file, temporary, leaf };
            Ok(Making::new(written, place.at, len, (&shared.calls, &shared.slabs)))
        });
        // Whatever came of it, nothing has the final name.
        let making = making.map_err(|error| error.with_outcome(WriteOutcome::NotApplied))?;
        let object = self.object(name, making.clone(), (len.unwrap_or(OPEN), Version::default()));
        Ok(making.intent(object))
    }
}
