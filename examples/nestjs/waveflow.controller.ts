import { Body, Controller, HttpCode, Inject, Post } from '@nestjs/common';
import { WaveflowClient } from './waveflow.client';
import type { Completion, HashCheck, MixingComplete } from './waveflow.types';

export const STEM_STORE = Symbol('STEM_STORE');

/**
 * Your database. Saving the same thing twice must change nothing. When the database is away,
 * throw `ServiceUnavailableException`.
 */
export interface StemStore {
  /** Whether another object than the one at `filepath` has these bytes. */
  isCopy(hash: string, filepath: string): Promise<boolean>;
  saveHash(stemId: string, hash: string): Promise<void>;
  saveWaveform(stemId: string, path: string): Promise<void>;
  markDeleted(stemId: string): Promise<void>;
  markFailed(id: string, sentence: string, code: string): Promise<void>;
  saveMix(stageId: string, mixPath: string, waveformPath: string): Promise<void>;
}

/**
 * The three webhooks. 201: WaveFlow may forget the result. 503, or no answer: it waits until the
 * server is back, and does no other work meanwhile. 500, which is what Nest makes of any other
 * error: it tries this webhook again for ten minutes. 4xx: it keeps the job in the dead-letter
 * queue at once. A webhook that comes again has the same `webhook-id` header.
 */
@Controller()
export class WaveflowController {
  constructor(
    private readonly client: WaveflowClient,
    @Inject(STEM_STORE) private readonly store: StemStore,
  ) {}

  @Post('hash-check')
  @HttpCode(201)
  async hashCheck(@Body() event: HashCheck) {
    const { stemId, userId, trackId, filepath, audio_hash } = event;
    const isDuplicate = await this.store.isCopy(audio_hash, filepath);
    if (isDuplicate) {
      await this.client.duplicate({ stemId, userId, trackId, filepath, audio_hash });
    } else {
      await this.store.saveHash(stemId, audio_hash);
      const { timestamp, original_filename } = event;
      await this.client.analyse({ stemId, userId, trackId, filepath, timestamp, original_filename });
    }
    return { success: true, isDuplicate };
  }

  @Post('completion')
  @HttpCode(201)
  async completion(@Body() event: Completion) {
    if (event.status === 'FAILURE') {
      await this.store.markFailed(event.stemId, event.result.error, event.result.error_code);
    } else if (event.result === null) {
      await this.store.markDeleted(event.stemId);
    } else {
      await this.store.saveWaveform(event.stemId, event.result.waveform_data_path);
    }
    return { status: 'success' };
  }

  @Post('mixing-complete')
  @HttpCode(201)
  async mixingComplete(@Body() event: MixingComplete) {
    if (event.status === 'FAILURE') {
      await this.store.markFailed(event.stageId, event.result.error, event.result.error_code);
    } else {
      await this.store.saveMix(event.stageId, event.mixed_file_path, event.waveform_data_path);
    }
    return { status: 'success' };
  }
}
