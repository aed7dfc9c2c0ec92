import { DynamicModule, Module, Type } from '@nestjs/common';
import { WaveflowClient } from './waveflow.client';
import { STEM_STORE, StemStore, WaveflowController } from './waveflow.controller';

@Module({})
export class WaveflowModule {
  /** `imports: [WaveflowModule.with(MyStemStore)]` */
  static with(store: Type<StemStore>): DynamicModule {
    return {
      module: WaveflowModule,
      controllers: [WaveflowController],
      providers: [WaveflowClient, { provide: STEM_STORE, useClass: store }],
      exports: [WaveflowClient],
    };
  }
}
