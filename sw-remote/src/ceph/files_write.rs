//! A file of CephFS in the making.

use std::{ffi::CString, sync::Arc};

use sw_engine::{Error, Verb, Version, WriteOutcome, seam::WriteIntent};

use super::{
    Ceph, fault, files,
    held::Held,
    sys::cephfs::{File, Mount},
};
use crate::{
    address::Address,
    foreign::draft::{Draft, Making, OPEN, temporary},
};

/// It, under its temporary name.
struct Written {
    name: String,
    mount: Arc<Held<Mount>>,
    file: Arc<Held<File>>,
    temporary: CString,
    path: CString,
}

impl Draft for Written {
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Error> {
        self.file.write(offset, from).map_err(|failed| fault::of_write(failed, Verb::Write, &self.name))
    }

    fn set_len(&self, len: u64) -> Result<(), Error> {
        self.file.set_len(len).map_err(|failed| fault::told(failed, Verb::Create, &self.name))
    }

    fn sync(&self) -> Result<(), Error> {
        self.file.sync().map_err(|failed| fault::told(failed, Verb::Flush, &self.name))
    }

    fn rename(&self) -> Result<(), Error> {
        let renamed = self.mount.rename(&self.temporary, &self.path);
        renamed.map_err(|failed| fault::of_write(failed, Verb::Create, &self.name))
    }

    fn sync_names(&self) -> Result<(), Error> {
        self.mount.sync().map_err(|failed| fault::told(failed, Verb::Create, &self.name))
    }

    fn remove(&self) -> bool {
        self.mount.remove(&self.temporary).is_ok()
    }
}

impl Ceph {
    pub(super) fn create_file(&self, at: Address, len: Option<u64>) -> Result<Box<dyn WriteIntent>, Error> {
        let name = at.to_string();
        let making = self.run(&self.shared.file_calls, (Verb::Create, &name), move |shared| {
            let name = at.to_string();
            let told = |failed| fault::of_write(failed, Verb::Create, &name);
            let (mount, path) = (shared.mount(&at, Verb::Create, &name)?, files::path(&at.key, Verb::Create, &name)?);
            if mount.stat(&path).is_ok_and(|facts| facts.format == libc::S_IFDIR) {
                return Err(super::objects::wrong_kind(&name, "a directory has this name"));
            }
            let temporary = files::path(&temporary(&at.key), Verb::Create, &name)?;
            if let Some((above, _)) = at.key.rsplit_once('/').filter(|(above, _)| !above.is_empty()) {
                mount.make_directories(&files::path(above, Verb::Create, &name)?).map_err(told)?;
            }
            let file = Arc::new(Held::new(File::create(&mount, &temporary).map_err(told)?, &shared.file_calls));
            let written = Written { name, mount, file, temporary, path };
            Ok(Making::new(written, at, len, (&shared.file_calls, &shared.slabs)))
        });
        // Whatever came of it, nothing has the final name.
        let making = making.map_err(|error| error.with_outcome(WriteOutcome::NotApplied))?;
        let object = self.object(name, making.clone(), (len.unwrap_or(OPEN), Version::default()));
        Ok(making.intent(object))
    }
}
