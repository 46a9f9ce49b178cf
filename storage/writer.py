import os, sqlite3, time
import msgpack
from collections.abc import Iterator
from policy.event import TAG_OF, TAGS, Event
from policy.errors import StorageError
from storage.rows import row
class Ring:
    def __init__(self, directory, clock):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self.clock = clock; self.pending=[]; self._marks={}; self._new={}
        self.db=sqlite3.connect(os.path.join(directory,"hot-000001.db"), isolation_level=None)
        self.db.executescript("PRAGMA page_size=1024; PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
          "CREATE TABLE IF NOT EXISTS batch(seq INTEGER PRIMARY KEY, n INT, wall INT, mono INT, synced INT, data BLOB);"
          "CREATE TABLE IF NOT EXISTS mark(source BLOB PRIMARY KEY, seq INT) WITHOUT ROWID;")
        self._marks=dict(self.db.execute("SELECT source, seq FROM mark"))
        (last,)=self.db.execute("SELECT max(seq+n) FROM batch").fetchone()
        self.next=last or 1
    def marks(self): return self._marks
    def add(self, events, source=b"", seq=0):
        self.pending += events
        if source: self._new[source]=seq
    def commit(self):
        if not self.pending and not self._new: return
        now=self.clock.read()
        data=msgpack.packb([(TAG_OF[type(e)],*e) for e in self.pending])
        try:
            self.db.execute("BEGIN")
            if self.pending: self.db.execute("INSERT INTO batch VALUES(?,?,?,?,?,?)",(self.next,len(self.pending),now.wall_ms,now.boottime_ms,now.synced,data))
            self.db.executemany("INSERT OR REPLACE INTO mark VALUES(?,?)", self._new.items())
            self.db.execute("COMMIT")
        except sqlite3.Error as error:
            try: self.db.execute("ROLLBACK")
            except sqlite3.Error: pass
            raise StorageError(f"ring: {error}") from None
        self.next+=len(self.pending); self.pending=[]; self._marks.update(self._new); self._new={}
    def tick(self, now): pass
    def status(self): return {"events": self.next-1}
    def rows(self, since_s, until_s, match, limit):
        found=0
        for seq,n,wall,mono,synced,data in self.db.execute("SELECT * FROM batch ORDER BY seq").fetchall():
            for k,(tag,*f) in enumerate(msgpack.unpackb(data,use_list=False)):
                e=TAGS[tag]._make(f); at=wall-(mono-e.at_ms)
                if at/1000<since_s or at/1000>until_s: continue
                r=row(e,f"1:{seq+k}",at,"synced" if synced else "unsynced",lambda ms: wall-(mono-ms))
                if match(r):
                    yield r; found+=1
                    if limit and found>=limit: return
    def close(self): self.commit(); self.db.close()
